"""Write the model card of an adapter: intended use, metrics, and open questions."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vlm.adapter.metadata import metadata
from vlm.resources import render
from vlm.statistics.estimate import described
from vlm.version import __version__
from vlm.weights import public_name

if TYPE_CHECKING:
    from vlm.data.vitals.schema import VitalsSchema
    from vlm.model.clinical_vlm import ClinicalVLM

EXAMPLE = "path/or/hub-id"
"""Placeholder of the adapter's name in the card's example."""


def card(model: "ClinicalVLM", metrics: Mapping[str, Any]) -> str:
    """Render the README.md of the adapter with the Hub's metadata; it holds no patient data."""
    base = model.model_config.llm.base
    head = metadata(base, metrics).to_yaml()
    vitals = (f"{vital.name} ({vital.unit})" if vital.unit else vital.name for vital in model.spec.schema.given)
    weights = model.model_config.vision.weights
    values = json.dumps(example_vitals(model.spec.schema), ensure_ascii=False)
    text = render(
        "vlm.adapter",
        "card.md.j2",
        escape=False,
        version=__version__,
        spec=model.spec,
        rank=model.model_config.llm.lora_rank,
        metrics=metrics,
        base=public_name(base),
        precision=_precision(model),
        example=EXAMPLE,
        example_values=values,
        example_argument=shlex.quote(values),
        cnn=model.model_config.vision.name,
        encoder_weights=weights if weights.startswith("hf-hub:") else "",
        vitals=", ".join(vitals),
        splits=metrics.get("splits", {}),
        verdicts=metrics.get("verdicts", []),
        measured=list(measured({key: value for key, value in metrics.items() if key not in NOT_A_MEASURE})),
        failures=list(failures(metrics)),
        operating_points=list(operating_points(metrics)),
        subgroups=dict(subgroup_sizes(metrics)),
        gaps=list(gaps(metrics)),
        calibration=model.calibration,
        miss_costs=model.model_config.fusion.miss_costs,
    )
    return f"---\n{head}\n---\n\n{text}"


def example_vitals(schema: "VitalsSchema", most: int = 3) -> dict[str, float | str]:
    """Choose normal values of the first vitals that have a reference range or categories, for an example."""
    values: dict[str, float | str] = {}
    for vital in schema.given:
        if vital.over_time or len(values) == most:
            continue
        if vital.categories:
            values[vital.name] = vital.categories[0]
        elif vital.reference:
            values[vital.name] = float(f"{sum(vital.reference) / 2:.3g}")
    return values


def _precision(model: "ClinicalVLM") -> str:
    method = getattr(model.base, "came_quantised", "")
    return method or {"none": "unquantised", "int8": "8-bit"}.get(model.model_config.llm.quantization, "4-bit")


NOT_A_MEASURE = ("splits", "by_split", "verdicts", "operating_points", "subgroups", "profile", "beside")
"""Parts of the metrics that the card shows elsewhere."""
RATES = ("sensitivity", "specificity", "ppv", "npv", "lr_positive", "lr_negative")


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


def operating_points(metrics: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield label, what its threshold was fixed for, the threshold and its rates on unseen cases, a row each."""
    for label, rows in metrics.get("operating_points", {}).items():
        for name, row in rows.items():
            rates = (described(row[rate]) if rate in row else "–" for rate in RATES)
            value, why = row["threshold"]["value"], row["threshold"].get("why", "not fixed")
            yield label, name.replace("_", " "), why if value is None else f"{value:.4g}", *rates


def subgroup_sizes(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each property that the test cases were grouped by, and its groups with their sizes."""
    for name, grouping in metrics.get("subgroups", {}).items():
        sizes = [f"{group} {row['cases']} cases of {row['patients']} patients{' (small)' if row['small'] else ''}"
                 for group, row in grouping["groups"].items()]  # fmt: skip
        yield name.replace("_", " "), "; ".join(sizes) or "no test case is in a group"


def gaps(metrics: Mapping[str, Any]) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """Yield for each gap with an interval whether this leaves 0 out, and its row of the table."""
    for name, grouping in metrics.get("subgroups", {}).items():
        for key, gap in grouping["gaps"].items():
            if gap["low"] is not None:
                row = name, key, gap["best"], gap["worst"], described(gap)
                yield gap["low"] > 0, tuple(text.replace("_", " ") for text in row)


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
