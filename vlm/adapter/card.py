"""Write the model card of an adapter: intended use, metrics, and open questions."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.adapter.metadata import metadata
from vlm.estimate import described
from vlm.version import __version__
from vlm.weights import public_name

if TYPE_CHECKING:
    from vlm.model.clinical_vlm import ClinicalVLM

EXAMPLE = "path/or/hub-id"
"""Placeholder of the adapter's name in the card's example."""
OPEN = "open: the authors must say"


def card(model: "ClinicalVLM", metrics: Mapping[str, Any]) -> str:
    """Render the README.md of the adapter with the Hub's metadata; it holds no patient data."""
    import jinja2  # imported here: loading an adapter does not need it

    base = model.model_config.llm.base
    head = metadata(base, metrics).to_yaml()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    vitals = (f"{vital.name} ({vital.unit})" if vital.unit else vital.name for vital in model.spec.schema.vitals)
    weights = model.model_config.vision.weights
    text = environment.get_template("card.md.j2").render(
        base=public_name(base),
        example=EXAMPLE,
        cnn=model.model_config.vision.name,
        encoder_weights=weights if weights.startswith("hf-hub:") else "",
        vitals=", ".join(vitals),
        labels=", ".join(model.spec.labels),
        splits=metrics.get("splits", {}),
        verdicts=metrics.get("verdicts", []),
        measured=list(measured({key: value for key, value in metrics.items() if key not in NOT_A_MEASURE})),
        failures=list(failures(metrics)),
        calibration=model.calibration,
        checklist=checklist(model, metrics),
    )
    return f"---\n{head}\n---\n\n{text}"


NOT_A_MEASURE = ("splits", "verdicts")


def measured(metrics: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, value) of every number in nested metrics; an estimate is one value with its interval."""
    for key, value in metrics.items():
        name = f"{above}{key.replace('_', ' ')}"
        if isinstance(value, Mapping) and value.keys() >= {"value", "low", "high"}:
            yield name, described(value)
        elif isinstance(value, Mapping):
            yield from measured(value, f"{name}, ")
        elif value is not None:
            yield name, f"{value:.3f}" if isinstance(value, float) else str(value)


def failures(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Describe the errors of the drafts on unseen cases, in sentences with their rates."""
    findings = metrics.get("findings", {})
    sentences = {
        "hallucination_rate": "of the drafts assert a finding that the reference does not have",
        "miss_rate": "of the references' findings are not in the draft",
        "negation_flip_rate": "of the findings that both speak of are asserted by one and denied by the other",
        "side_flip_rate": "of the findings with a side are on the other one",
        "zone_flip_rate": "of the findings with a zone are in another one",
    }
    for name, sentence in sentences.items():
        value = findings.get(name, {}).get("value")
        if value:
            yield f"{value:.1%} {sentence}."
    weak = [(values["f1"]["value"], name) for name, values in findings.get("each", {}).items()
            if values["f1"]["value"] is not None]  # fmt: skip
    for value, name in sorted(weak)[:3]:
        yield f"Weakest findings: {name.replace('_', ' ')}, F1 {value:.3f}."
    numbers = metrics.get("numbers", {})
    if numbers.get("statements") and numbers["consistent"]["value"] < 1:
        share = 1 - numbers["consistent"]["value"]
        yield f"{share:.1%} of the {numbers['statements']} statements about vitals do not fit the values given."


def checklist(model: "ClinicalVLM", metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List items of TRIPOD-LLM (Gallifant et al., 2025) and CLAIM (Tejani et al., 2024), answered or left open."""
    spec, config = model.spec, model.model_config
    splits = metrics.get("splits", {})
    sizes = ", ".join(f"{name} {part['cases']} cases of {part['patients']} patients" for name, part in splits.items())
    tested = bool(metrics)
    return [
        ("Title and task (TRIPOD-LLM)", "drafts a report and gives probabilities from an image and clinical values"),
        ("Intended use and users (TRIPOD-LLM)", "a draft for a clinician's eyes; see above"),
        ("Study design, dates, setting (CLAIM)", OPEN),
        ("Data sources and eligibility (CLAIM)", OPEN),
        ("De-identification (CLAIM)", OPEN),
        ("Preprocessing (CLAIM)", f"greyscale, aspect kept, {spec.image.size} × {spec.image.size}"),
        ("Missing data (CLAIM)", "a learned vector beside a mask for each missing value and a missing image"),
        ("Reference standard and annotators (CLAIM)", OPEN),
        ("Sample size (CLAIM)", sizes or OPEN),
        ("Partitions and their level (CLAIM)", "disjoint by patient"),
        ("Model and inputs (CLAIM, TRIPOD-LLM)",
         f"{config.vision.name}, {len(spec.schema)} vitals, frozen 4-bit language model with LoRA of rank "
         f"{config.llm.lora_rank}"),
        ("Software (CLAIM)", f"clinical-vlm {__version__}"),
        ("Initial weights (CLAIM)", "pretrained base and CNN, as named above"),
        ("Training details (CLAIM)", "the run's config.yaml, which is not part of this folder"),
        ("Metrics with uncertainty (CLAIM)", "below, 95 % by bootstrap over patients" if tested else OPEN),
        ("Robustness and use of inputs (CLAIM)",
         "another patient's image or vitals, blank and withheld; below" if metrics.get("ablation") else OPEN),
        ("Calibration (TRIPOD-LLM)",
         model.calibration.describe() if model.calibration.patients else OPEN),
        ("External testing (CLAIM)", OPEN),
        ("Demographics and subgroups, fairness (CLAIM, TRIPOD-LLM)", OPEN),
        ("Failure analysis (CLAIM)", "below" if metrics.get("findings") else OPEN),
        ("Limitations, generalisability (CLAIM)", OPEN),
        ("Ethics approval, registration, funding (CLAIM)", OPEN),
    ]  # fmt: skip
