"""Run one evaluation, from an adapter and cases to metrics, figures and a page."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.adapter import AdapterConfig, load, open_adapter
from vlm.atomic import staged
from vlm.config import Config
from vlm.config.parsing import as_options, is_config, parse_config
from vlm.data.cohort import Cohort
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.evaluation.evaluate import evaluate
from vlm.evaluation.groupings import check_subgroups
from vlm.evaluation.learned import load_learned
from vlm.evaluation.operating_points import saved_thresholds
from vlm.evaluation.site import saved_metrics
from vlm.evaluation.site import summary as beside_lines
from vlm.evaluation.summary import summary_lines
from vlm.locks import locked
from vlm.plain import escaped

FIXED_HERE = "fixed on the validation split of these data (the adapter has none for these operating points)"
"""What is printed where an adapter of an earlier version, or other operating points, are tested."""


def evaluate_adapter(
    adapter: str | Path,
    data: str | Path,
    output: str | Path,
    base: str | None = None,
    revision: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Test an adapter folder or Hub id on unseen cases; returns the metrics that are written to the folder `output`.

    `data` is a config, a preset such as `demo`, or a table of test cases; `overrides` are dotted keys of the config.
    `base` replaces the base model that the adapter names. Raises `UserError` for a folder `output` that is not empty,
    a misspelt key, and cases that do not fit the adapter.
    """
    return test_adapter(str(adapter), str(data), Path(output), base, as_options(overrides or {}), revision)


def test_adapter(
    adapter: str, data: str, output: Path, base: str | None, options: Sequence[str], revision: str | None = None
) -> dict[str, Any]:
    """Load adapter and data, check that they match, evaluate and write; `options` go to the config."""
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: not empty; name a new folder with --output")
    opened = open_adapter(adapter, revision)
    given = opened.config
    config = _config_of(data, given, options)
    cohort = load_cohort(config.data)
    _check_same_columns(data, given, cohort)
    check_subgroups(config, cohort)
    if config.data.color not in ("auto", given.spec.image.color):
        raise UserError(f"data.color: {config.data.color}; the adapter sees {given.spec.image.color}; leave it at auto")
    learned = load_learned(config.evaluation.learned_metrics)
    own = saved_metrics(opened.path)
    thresholds = saved_thresholds(opened.path, given.spec.labels, config.evaluation.operating_points)
    print(cohort.describe(), *(escaped(f"warning: {text}") for text in cohort.warnings), sep="\n")
    if given.spec.labels and config.evaluation.operating_points:
        print(f"thresholds: {'those saved with the adapter' if thresholds else FIXED_HERE}")
    model = load(opened, base=base)
    config = replace(config, run=replace(config.run, name=Path(adapter).name))
    with locked(output), nullcontext(output) if output.exists() else staged(output, manifest=False) as place:
        metrics = evaluate(model, cohort, config, place, learned=learned, thresholds=thresholds, own=own)
    print(
        *summary_lines(metrics), *beside_lines(metrics.get("beside", {})), f"page: {output / 'report.html'}", sep="\n"
    )
    return metrics


def _config_of(data: str, given: AdapterConfig, options: Sequence[str]) -> Config:
    """Parse `data` as a config, or build a config that tests on all rows of the table `data`."""
    if is_config(data):
        return parse_config(["--config", data, *options])[0]
    config, _ = parse_config(options)
    table = replace(config.data.table, file=Path(data).name, labels=list(given.spec.labels),
                    vitals=list(given.spec.schema.vitals))  # fmt: skip
    split = replace(config.data.split, validation=0.0, test=1.0)
    cases = replace(config.data, source="table", root=str(Path(data).parent), table=table, split=split)
    return Config(data=cases, evaluation=config.evaluation)


def _check_same_columns(data: str, given: AdapterConfig, cohort: Cohort) -> None:
    for kind, ours, theirs in (("vitals", given.spec.schema.names, cohort.schema.names),
                               ("labels", given.spec.labels, cohort.labels)):  # fmt: skip
        if ours != theirs:
            raise UserError(f"{data}: its {kind} are {', '.join(theirs) or 'none'}, the adapter's {', '.join(ours)}")
