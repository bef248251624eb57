"""Write and read the metadata of a model card, its YAML head, by huggingface_hub's own classes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.errors import UserError
from vlm.statistics.estimate import Estimate
from vlm.untrusted import parse_yaml

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TASK = "image-text-to-text"
LIBRARY = "clinical-vlm"
"""Library of a card: the Hub shows the snippet of a library that it knows, and PEFT's would load the LoRA alone."""
TAGS = ("clinical-vlm", "peft", "lora", "radiology", "medical")
NAME = "Clinical report adapter"


@dataclass(frozen=True)
class CardDetails:
    """Hold the metadata that only the authors know; None leaves the card as it is."""

    license: str | None = None
    datasets: tuple[str, ...] = ()
    language: str | None = None
    base_model: str | None = None


def metadata(base: str, metrics: Mapping[str, Any]) -> "ModelCardData":
    """Build the metadata of a new card; `base` is the Hub id, wheel or folder in the config."""
    from huggingface_hub import ModelCardData

    results = list(eval_results(metrics))
    return ModelCardData(
        base_model=base if is_hub_id(base) else None,
        base_model_relation="adapter",
        library_name=LIBRARY,
        pipeline_tag=TASK,
        language="en",
        tags=list(TAGS),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=NAME if results else None,
        eval_results=results or None,
    )


def is_hub_id(base: str) -> bool:
    """Check whether a base is written as a Hub id and is no local folder."""
    return not base.startswith(("pypi:", ".", "/", "~")) and base.count("/") <= 1 and not Path(base).exists()


def eval_results(metrics: Mapping[str, Any]) -> Iterator["EvalResult"]:
    """Yield the main metrics on unseen cases under the Hub's metric ids, each with its interval in its name."""
    from huggingface_hub import EvalResult

    tested_on = f"{metrics.get('cases', 'the')} unseen cases of {metrics.get('patients', 'other')} patients"
    chief = [("roc_auc", f"AUROC {label}", values["auroc"]) for label, values in metrics.get("labels", {}).items()]
    chief += [("f1", "F1 of the findings in the reports", metrics.get("findings", {}).get("f1"))]
    chief += [("rouge", "ROUGE-L", metrics.get("text", {}).get("rougel"))]
    for kind, name, measure in chief:
        estimate = Estimate(measure["value"], measure["low"], measure["high"]) if measure else Estimate(None)
        if estimate.value is not None:
            yield EvalResult(
                task_type=TASK,
                dataset_type="held-out",
                dataset_name=tested_on,
                dataset_split="test",
                metric_type=kind,
                metric_name=name if estimate.low is None else f"{name}, with 95 % interval {estimate}",
                metric_value=round(estimate.value, 4),
            )


def with_details(card: str, details: CardDetails, where: str) -> str:
    """Add the authors' details to the card's metadata; raises `UserError` for metadata that the Hub cannot read."""
    from huggingface_hub import ModelCard

    try:
        if card.startswith("---"):
            parse_yaml(card.split("\n---", 1)[0], "its head")  # checks the bounds; ModelCard parses it again
        parsed = ModelCard(card)
    except Exception as error:  # its YAML parser has exceptions of its own
        raise UserError(f"{where}: the Hub cannot read the card's head: {str(error).splitlines()[0]}") from None
    given = {"license": details.license, "datasets": list(details.datasets), "language": details.language}
    for name, value in (given | {"base_model": details.base_model}).items():
        if value:
            parsed.data[name] = value
    return parsed.content
