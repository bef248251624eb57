"""Run one evaluation, from an adapter and cases to metrics, figures and a page."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlm.adapter import AdapterConfig, AdapterFolder, load, open_adapter
from vlm.adapter.site_calibration import SiteCalibration, check_site_name, read_site, site_file, write_site
from vlm.adapter.validate import is_fetched
from vlm.atomic import staged
from vlm.config import Config
from vlm.config.parsing import as_options, is_config, parse_config
from vlm.data.cohort import Cohort
from vlm.data.ingest.sources import load_cohort
from vlm.device import choose_device, choose_precision
from vlm.distributed import is_main
from vlm.errors import UserError
from vlm.evaluation.evaluate import evaluate, plain_splits
from vlm.evaluation.groupings import check_subgroups
from vlm.evaluation.learned import load_learned
from vlm.evaluation.operating_points import saved_thresholds
from vlm.evaluation.predictions import write_rexrank
from vlm.evaluation.recalibrate import fit_site, move_thresholds, set_apart
from vlm.evaluation.scoring import score_cases
from vlm.evaluation.site import saved_metrics
from vlm.evaluation.site import summary as beside_lines
from vlm.evaluation.summary import summary_lines
from vlm.locks import locked
from vlm.model.clinical_vlm import ClinicalVLM
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


class SiteOptions(NamedTuple):
    """Say whether a site's recalibration is used, or fitted."""

    file: str | None = None
    """Recalibration to use."""
    recalibrate_on: int | None = None
    """Number of patients to fit one on."""
    name: str | None = None
    """Name of the site that it is fitted for; None: that of the table."""


def test_adapter(
    adapter: str,
    data: str,
    output: Path,
    base: str | None,
    options: Sequence[str],
    revision: str | None = None,
    site: SiteOptions | None = None,
    rexrank: bool = False,
) -> dict[str, Any]:
    """Load adapter and data, check that they match, evaluate and write; `options` go to the config.

    With `rexrank` the predictions are also written in the format of ReXrank.
    """
    site = site or SiteOptions()
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: not empty; name a new folder with --output")
    opened = open_adapter(adapter, revision)
    given = opened.config
    config = _config_of(data, given, options)
    cohort = load_cohort(config.data)
    _check_same_columns(data, given, cohort)
    check_subgroups(config, cohort)
    used = read_site(site.file, opened) if site.file else None
    if site.recalibrate_on is not None:
        new_file = _new_file(site, data, opened, output)
        cohort = set_apart(cohort, site.recalibrate_on)
    if config.data.color not in ("auto", given.spec.image.color):
        raise UserError(f"data.color: {config.data.color}; the adapter sees {given.spec.image.color}; leave it at auto")
    learned = load_learned(config.evaluation.learned_metrics)
    own = saved_metrics(opened.path)
    thresholds = saved_thresholds(opened.path, given.spec.labels, config.evaluation.operating_points)
    print(cohort.describe(), *(escaped(f"warning: {text}") for text in cohort.warnings), sep="\n")
    if given.spec.labels and config.evaluation.operating_points:
        print(f"thresholds: {'those saved with the adapter' if thresholds else FIXED_HERE}")
    device = choose_device()
    precision = choose_precision(config.train.precision, device.value)
    print(f"precision: {str(precision.value).removeprefix('torch.')} ({precision.reason})")
    model = load(opened, base=base, device=device.value, dtype=precision.value)
    config = replace(config, run=replace(config.run, name=Path(adapter).name))
    if site.recalibrate_on is not None:
        used = _fitted(model, opened, cohort, config, new_file)
    if used is not None:
        print(used.describe())
        model.calibration = used
        thresholds = move_thresholds(thresholds, given.spec.labels, used) if thresholds else thresholds
    with locked(output), nullcontext(output) if output.exists() else staged(output, manifest=False) as place:
        metrics = evaluate(model, cohort, config, place, learned=learned, thresholds=thresholds, own=own)
        if rexrank and is_main():
            write_rexrank(place, cohort, config.data.folder)
    print(
        *summary_lines(metrics), *beside_lines(metrics.get("beside", {})), f"page: {output / 'report.html'}", sep="\n"
    )
    return metrics


def _new_file(site: SiteOptions, data: str, opened: AdapterFolder, output: Path) -> Path:
    """Name the file to write, beside the adapter, or beside `output` for one in the Hub's cache.

    Raises `UserError` before the work for a site without a plain name, and for a file that is there already.
    """
    if site.file:
        raise UserError("--site and --recalibrate_on: one uses a file, the other writes one; leave one of them away")
    name = site.name or Path(data).stem
    check_site_name(name, "--site_name")
    file = site_file(output if is_fetched(opened.path.resolve()) else opened.path, name)
    if file.exists():
        raise UserError(f"{file}: is there already; move it away, or name another --site_name")
    return file


def _fitted(model: ClinicalVLM, opened: AdapterFolder, cohort: Cohort, config: Config, file: Path) -> SiteCalibration:
    """Fit the recalibration of a site on the patients set apart, and write it."""
    apart = plain_splits(model, cohort, config)["validation"]
    scores = score_cases(model, apart, config.evaluation.batch_size, "set apart", text=False)
    name = file.stem.removeprefix("site-")
    fitted, notes = fit_site(scores, model.spec.labels, apart.rows["patient"], model.calibration, name)
    write_site(file, opened, fitted)
    print(*(escaped(note) for note in notes), f"recalibration of the site: {file}", sep="\n")
    return fitted


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
