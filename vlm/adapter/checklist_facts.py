"""Answer topics of reporting checklists from a run: its adapter's config, its metrics and its options.

Only what the files say is stated; whether it is the whole answer, the authors judge.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from vlm.adapter.card import failures
from vlm.adapter.layout import AdapterConfig
from vlm.statistics.estimate import described
from vlm.version import __version__
from vlm.weights import public_name

Values = Mapping[str, Any]
USE = (
    "a draft for the eyes of a clinician who sees the image and the values and writes the report; never to diagnose, "
    "to treat, to triage or to fill a record unread"
)
TRAINING = ("max_steps", "epochs", "batch_size", "learning_rate", "lora_learning_rate", "vision_learning_rate",
            "optimizer", "schedule", "warmup_steps", "weight_decay", "precision", "seed")  # fmt: skip
"""Options of training that are named; all are in config.yaml."""


def run_facts(config: AdapterConfig, metrics: Values, options: Values, adapter_digest: str) -> dict[str, str]:
    """Return topic → answer; a topic that the run does not answer is left out.

    `metrics` and `options` are the content of metrics.json and config.yaml, empty where they are missing.
    """
    found = {
        **_of_adapter(config, adapter_digest),
        **_of_options(options),
        **_of_metrics(metrics, config),
    }
    return {topic: text for topic, text in found.items() if text}


def _of_adapter(config: AdapterConfig, adapter_digest: str) -> dict[str, str]:
    spec, model = config.spec, config.model
    base, encoder, prompt = public_name(model.llm.base), model.vision.name, model.prompt
    labels = ", ".join(spec.labels) or "no labels"
    color = "sRGB" if spec.image.in_color else "grey"
    return {
        "intended_use": USE,
        "preprocessing": f"images {color}, aspect kept, {spec.image.size} × {spec.image.size} pixels; vitals scaled by "
        "statistics of the training split",
        "missing": "a learned vector beside a mask for each missing value and a missing image; implausible values are "
        "taken as missing, with a warning",
        "model": f"image encoder {encoder} and {len(spec.schema.given)} vitals as tokens of a frozen language model "
        f"({base}) with LoRA of rank {model.llm.lora_rank}; a head for {len(spec.labels)} labels on the joint vector",
        "version": f"clinical-vlm {__version__}; base {base}; adapter SHA-256 {adapter_digest}",
        "initial_weights": f"pretrained {base} and {encoder}; LoRA, projections and head are new",
        "prompt": f"fixed in training: system {prompt.system!r}, instruction {prompt.instruction!r}",
        "output": f"a text, greedily decoded, and a probability for each label ({labels}); findings are read from the "
        "text by rules",
        "quality_control": "each draft comes with warnings of missing and implausible values, blank images and a cut",
        "standards": "LOINC and UCUM for vitals; drafts as FHIR R4 to R5 Bundles; SNOMED CT, RadLex for some findings",
        "documentation": "README.md of the adapter, its card; the documentation of clinical-vlm",
        "code_availability": f"clinical-vlm {__version__}, Apache-2.0; for model and data the authors must say",
    }


def _of_options(options: Values) -> dict[str, str]:
    train, evaluation = _section(options, "train"), _section(options, "evaluation")
    named = [f"{name} {train[name]}" for name in TRAINING if train.get(name) not in (None, -1)]
    tokens = evaluation.get("max_new_tokens")
    return {
        "training": f"{', '.join(named)}; every option is in config.yaml of the run" if named else "",
        "model_selection": f"lowest loss on the validation split, tried every {train['eval_steps']} steps"
        if train.get("eval_steps") else "",
        "inference": f"greedy decoding, at most {tokens} new tokens in the test" if tokens else "",
    }  # fmt: skip


def _of_metrics(metrics: Values, config: AdapterConfig) -> dict[str, str]:
    if not metrics:
        return {}
    splits = _joined(f"{name} {part['cases']} cases of {part['patients']} patients"
                     for name, part in _section(metrics, "splits").items())  # fmt: skip
    arms = ", ".join(str(name).replace("_", " ") for name in _section(metrics, "ablation"))
    calibration = config.calibration
    return {
        "partitions": f"{splits}; disjoint by patient" if splits else "",
        "flow": splits,
        "internal_test": f"{metrics.get('cases')} unseen cases of {metrics.get('patients')} patients, same source",
        "metrics": f"metrics.json: {', '.join(str(name) for name in metrics if isinstance(metrics[name], Mapping))}",
        "uncertainty": "95 % intervals by bootstrap over patients",
        "robustness": f"drafts with parts of the case withheld or exchanged: {arms}" if arms else "",
        "results": _joined(_chief(metrics)),
        "comparisons": _joined(_baselines(metrics)),
        "failures": " ".join(failures(metrics)),
        "calibration": f"one temperature, {calibration.temperature:.2f}; {calibration.describe()}"
        if calibration.patients else "",
    }  # fmt: skip


def _chief(metrics: Values) -> Iterable[str]:
    """Name the main results on unseen cases, each with its interval."""
    for label, values in _section(metrics, "labels").items():
        if _is_estimate(values.get("auroc")):
            yield f"AUROC of {label} {described(values['auroc'])}"
    for group, name, title in (("findings", "f1", "finding F1"), ("text", "rougel", "ROUGE-L")):
        if _is_estimate(value := _section(metrics, group).get(name)):
            yield f"{title} {described(value)}"


def _baselines(metrics: Values) -> Iterable[str]:
    for name, values in _section(metrics, "baselines").items():
        value = _section(values, "findings").get("f1") if isinstance(values, Mapping) else None
        if _is_estimate(value):
            yield f"finding F1 of {str(name).replace('_', ' ')} {described(value)}"


def _section(values: Values, name: str) -> Values:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _is_estimate(value: Any) -> TypeGuard[Values]:
    """Check for an estimate that is defined."""
    return isinstance(value, Mapping) and value.keys() >= {"value", "low", "high"} and value["value"] is not None


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(parts)
