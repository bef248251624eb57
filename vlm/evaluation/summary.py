"""Summarize the metrics of a run in a few lines of text."""

from collections.abc import Mapping
from typing import Any

from vlm.statistics.estimate import described

MARKS = {True: "+", False: "!", None: "?"}


def summary_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Format the main metrics with intervals, the verdicts and the fact measures."""
    loss = described(metrics["text_loss"])
    untrained = ""
    if "text_loss_untrained" in metrics:
        untrained = f", untrained adapter {described(metrics['text_loss_untrained'])}"
    drawn = f", drawn from {metrics['drawn_from']}" if metrics.get("drawn_from", 0) > metrics["cases"] else ""
    lines = [
        f"{metrics['cases']} unseen cases of {metrics['patients']} patients{drawn}; 95 % intervals by patient",
        f"  text loss per token   {loss}{untrained}",
    ]
    for label, values in metrics["labels"].items():
        counts = f"{values['positives']} of {values['positives'] + values['negatives']} positive"
        lines.append(f"  AUROC {label:<15} {described(values['auroc'])}, {counts}")
    if metrics.get("findings"):
        for name in ("f1", "hallucination_rate", "miss_rate"):
            lines.append(f"  finding {name.replace('_', ' '):<18} {described(metrics['findings'][name])}")
    if named := metrics.get("named_labels"):
        lines.append(f"  labels named by text  {described(named['macro_f1'])}, mean F1 of {len(named['each'])}")
    if metrics["calibration"]["patients"]:
        ece, patients = described(metrics["calibration"]["ece"]), metrics["calibration"]["patients"]
        site = metrics["calibration"].get("site")
        fitted = f"recalibrated on {patients} patients of {site}"
        how = fitted if site else f"temperature fitted on {patients} validation patients"
        lines.append(f"  calibration error     {ece}, {how}")
    if (sets := metrics.get("reliability", {}).get("label_sets", {})).get("each"):
        size = f"mean size {described(sets['size'])}"
        lines.append(f"  label sets hold truth {described(sets['coverage'])}, wanted {sets['wanted']:g}; {size}")
    if (sure := metrics.get("reliability", {}).get("sentences", {})).get("with_confidence"):
        held = metrics["reliability"]["abstaining"]["wrong_sentences"]
        lines.append(f"  sentences, wrong told {described(sure['auroc'])}, calibration error {described(sure['ece'])}")
        lines.append(f"  wrong sentences       {described(held['all'])} a draft, abstaining {described(held['given'])}")
    lines += [f"  {MARKS[verdict['good']]} {verdict['text']}" for verdict in metrics["verdicts"]]
    for arm, facts in metrics.get("facts", {}).items():
        for name, share in facts.items():
            if share["cases"]:
                title = f"  {arm.replace('_', ' '):<16} {name.replace('_', ' '):<31}"
                lines.append(f"{title} {described(share)}, {share['cases']} cases")
    return lines
