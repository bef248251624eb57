"""The metrics of a run in a few lines that a person reads."""

from collections.abc import Mapping
from typing import Any

from vlm.evaluation.intervals import Estimate


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """What was measured on how many unseen cases, with intervals and what it is compared with."""
    loss = Estimate(**metrics["text_loss"])
    lines = [
        f"{metrics['cases']} unseen cases of {metrics['patients']} patients; 95 % intervals by patient",
        f"  text loss per token   {loss}, untrained adapter {Estimate(**metrics['text_loss_untrained'])}",
    ]
    for label, values in metrics["labels"].items():
        counts = f"{values['positives']} of {values['positives'] + values['negatives']} positive"
        lines.append(f"  AUROC {label:<15} {Estimate(**values['auroc'])}, {counts}")
    for arm, facts in metrics.get("facts", {}).items():
        for name, share in facts.items():
            if share["cases"]:
                estimate = Estimate(share["value"], share["low"], share["high"])
                lines.append(
                    f"  {arm.replace('_', ' '):<16} {name.replace('_', ' '):<31} {estimate}, {share['cases']} cases"
                )
    return lines
