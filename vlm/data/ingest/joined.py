"""Join several sources into one cohort; labels and vitals that a source lacks are unknown, never negative."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from vlm.config import DataConfig, SectionConfig, SourceConfig, VitalConfig
from vlm.data.cohort import Cohort, Columns, build_dataset
from vlm.data.signals.signal_spec import same_format
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.series import expand
from vlm.data.vitals.units import conversion
from vlm.errors import UserError


def load_joined(data: DataConfig, load: Callable[[DataConfig], Cohort]) -> Cohort:
    """Read each of `data.sources` with `load` and join them, with the source's name as prefix of ids and patients.

    A vital in two units is converted to the unit of the first source that has it. Raises `UserError` for two sources
    of one name, a label map that names no label, and vitals that cannot be converted.
    """
    names = [source.name or source.source for source in data.sources]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"data.sources: two are called {twice[0]}; give each a name")
    slashed = [name for name in names if "/" in name]
    if slashed:
        raise UserError(f"data.sources: {slashed[0]}: a name has no slash; ids are written as name/id")
    sources = [_Source(name, source.weight, _renamed(load(_own(data, source)), source, name))
               for name, source in zip(names, data.sources, strict=True)]  # fmt: skip
    cohorts = [source.cohort for source in sources]
    schema, notes = _vitals(sources)
    labels = tuple(dict.fromkeys(label for cohort in cohorts for label in cohort.labels))
    reports = _reports(cohorts)
    sections = tuple(chain(*reports))
    parts = (part for source in sources for part in _parts(source, schema, labels, reports))
    signal = same_format([cohort.signal for cohort in cohorts])
    dataset = build_dataset(parts, schema, len(labels), len(sections), signal is not None)
    findings = {label: finding for cohort in cohorts for label, finding in cohort.label_findings.items()}
    warnings = tuple(f"{source.name}: {text}" for source in sources for text in source.cohort.warnings)
    return Cohort(dataset, schema, labels, sections, None, findings, (*notes, *warnings), signal)


@dataclass(frozen=True)
class _Source:
    name: str
    weight: float
    cohort: Cohort


def _own(data: DataConfig, source: SourceConfig) -> DataConfig:
    """Return the config of one source alone."""
    own = {name: getattr(source, name) for name in ("source", "root", "table", "phantom", "covid_cxr", "chexpert",
                                                    "mimic_cxr")}  # fmt: skip
    return replace(data, sources=[], finding_labels=[], **own)


def _renamed(cohort: Cohort, source: SourceConfig, name: str) -> Cohort:
    unknown = [label for label in source.labels if label not in cohort.labels]
    if unknown:
        known = ", ".join(cohort.labels)
        raise UserError(f"data.sources: {name}: labels: {unknown[0]} is none of its labels, {known}")
    labels = tuple(source.labels.get(label, label) for label in cohort.labels)
    if len(set(labels)) < len(labels):
        raise UserError(f"data.sources: {name}: labels: two of its labels get one name")
    findings = {source.labels.get(label, label): finding for label, finding in cohort.label_findings.items()}
    return replace(cohort, labels=labels, label_findings=findings)


# ------------------------------------------------------------------------------------------- vitals


def _vitals(sources: Sequence[_Source]) -> tuple[VitalsSchema, list[str]]:
    """Merge the vitals by name, the first source's declaration first; return notes on ranges overridden by it."""
    first: dict[str, tuple[str, VitalConfig]] = {}
    notes = []
    for source in sources:
        for vital in source.cohort.schema.vitals:
            owner, base = first.get(vital.of, (source.name, None))
            made = next((made for made in expand(base) if made.feature == vital.feature), vital) if base else vital
            owner, kept = first.setdefault(vital.name, (owner, made))
            if vital.over_time and not kept.over_time:  # a plain value of one source is the last value of another
                first[vital.name] = owner, replace(kept, over_time=True, steady=vital.steady)
            factor, offset = _conversion(kept, vital, owner, source.name)
            for what in ("reference", "plausible"):
                ours, theirs = getattr(kept, what), [factor * x + offset for x in getattr(vital, what)]
                if theirs and not (ours and np.allclose(ours, theirs, rtol=0.02)):
                    spans = [f"{min(x):g} to {max(x):g}" if x else "none" for x in (ours, theirs)]
                    notes.append(f"{vital.name}: the {what} range of {owner}, {spans[0]} {kept.unit}, is taken for "
                                 f"{source.name} too, which says {spans[1]}")  # fmt: skip
    return VitalsSchema(tuple(vital for _, vital in first.values())), notes


def _conversion(kept: VitalConfig, vital: VitalConfig, owner: str, name: str) -> tuple[float, float]:
    """Return (factor, offset) from a source's unit to the cohort's; raises `UserError` if there is none."""
    if kept.categories or vital.categories:
        if set(kept.categories) == set(vital.categories):
            return 1.0, 0.0
    elif kept.unit == vital.unit:
        return 1.0, 0.0
    elif pair := conversion(kept, vital.unit):
        return pair
    elif pair := conversion(vital, kept.unit):
        return 1 / pair[0], -pair[1] / pair[0]
    units = [of.unit or "/".join(of.categories) or "without a unit" for of in (kept, vital)]
    raise UserError(
        f"data.sources: {vital.name} is {units[0]} in {owner} and {units[1]} in {name}, and neither declares how the "
        "other converts (accepts); declare one unit, or two names"
    )


def _converted(cohort: Cohort, schema: VitalsSchema) -> Callable[[np.ndarray], np.ndarray]:
    """Build a converter of N × the source's vitals → N × all vitals in the cohort's units; NaN if it lacks one."""
    own = []
    for place, vital in enumerate(cohort.schema.vitals):
        kept = schema.vitals[schema.position(vital.name)]
        own.append((place, schema.position(vital.name), vital, kept))

    def convert(x: np.ndarray) -> np.ndarray:
        out = np.full((len(x), len(schema)), np.nan)
        for place, target, vital, kept in own:
            if kept.categories:
                order = np.array([*(kept.categories.index(word) for word in vital.categories), math.nan])
                known = np.isfinite(x[:, place])
                out[:, target] = order[np.where(known, x[:, place], -1).astype(int)]
            else:
                factor, offset = _conversion(kept, vital, "", "")
                out[:, target] = factor * x[:, place] + offset
        return out

    return convert


# --------------------------------------------------------------------------------------- reports, rows


def _reports(cohorts: Sequence[Cohort]) -> list[tuple[SectionConfig, ...]]:
    """Return the distinct lists of sections; sources share one only if it is equal, order included."""
    kinds: list[tuple[SectionConfig, ...]] = []
    for cohort in cohorts:
        if cohort.sections not in kinds:
            kinds.append(cohort.sections)
    return kinds


def _parts(
    source: _Source, schema: VitalsSchema, labels: Sequence[str], reports: Sequence[tuple[SectionConfig, ...]]
) -> Iterator[Columns]:
    """Yield the rows of one source in the columns of the joined cohort."""
    name, cohort = source.name, source.cohort
    convert, own = _converted(cohort, schema), [labels.index(label) for label in cohort.labels]
    before = sum(len(kind) for kind in reports[: reports.index(cohort.sections)])
    after = sum(map(len, reports)) - before - len(cohort.sections)
    for part in cohort.dataset.iter(10_000):
        rows = len(part["id"])
        known = np.full((rows, len(labels)), np.nan)
        known[:, own] = np.array(part["labels"], dtype=float).reshape(rows, len(own))
        yield {
            **part,
            "id": [f"{name}/{id_}" for id_ in part["id"]],
            "patient": [f"{name}/{patient}" for patient in part["patient"]],
            "vitals": list(convert(np.array(part["vitals"], dtype=float).reshape(rows, len(cohort.schema)))),
            "labels": known.tolist(),
            # None: sections of other sources
            "sections": [[*[None] * before, *texts, *[None] * after] for texts in part["sections"]],
            "weight": [source.weight] * rows,
            "source": [name] * rows,
        }
