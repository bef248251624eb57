"""Several sources as one cohort: what a source does not have is unknown, never negative."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from vlm.config import DataConfig, SourceConfig, VitalConfig
from vlm.data.cohort import Cohort, Columns, build_dataset
from vlm.data.schema import VitalsSchema
from vlm.errors import UserError


def load_joined(data: DataConfig, load: Callable[[DataConfig], Cohort]) -> Cohort:
    """Read each of `data.sources` with `load` and join them, ids and patients marked with their source.

    Raises `UserError` for two sources of one name, a label map that names no label, and vitals whose units differ.
    """
    names = [source.name or source.source for source in data.sources]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"data.sources: two are called {twice[0]}; give each a name")
    cohorts = [_renamed(load(_own(data, source)), source, name)
               for source, name in zip(data.sources, names, strict=True)]  # fmt: skip
    schema = VitalsSchema(_vitals(names, cohorts))
    labels = tuple(dict.fromkeys(label for cohort in cohorts for label in cohort.labels))
    sections = tuple({section.column: section for cohort in cohorts for section in cohort.sections}.values())
    parts = (
        part
        for name, source, cohort in zip(names, data.sources, cohorts, strict=True)
        for part in _parts(name, source, cohort, schema, labels, [section.column for section in sections])
    )
    dataset = build_dataset(parts, schema, len(labels), len(sections))
    findings = {label: finding for cohort in cohorts for label, finding in cohort.label_findings.items()}
    warnings = tuple(f"{name}: {text}" for name, cohort in zip(names, cohorts, strict=True) for text in cohort.warnings)
    counts = ", ".join(f"{name} {len(cohort.dataset):,}" for name, cohort in zip(names, cohorts, strict=True))
    return Cohort(dataset, schema, labels, sections, None, findings, (f"cases by source: {counts}", *warnings))


def _own(data: DataConfig, source: SourceConfig) -> DataConfig:
    """The config as if there were this source alone."""
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


def _vitals(names: Sequence[str], cohorts: Sequence[Cohort]) -> tuple[VitalConfig, ...]:
    """The union by name; raises `UserError` where one name means two things."""
    first: dict[str, tuple[str, VitalConfig]] = {}
    for name, cohort in zip(names, cohorts, strict=True):
        for vital in cohort.schema.vitals:
            other, known = first.setdefault(vital.name, (name, vital))
            if (known.unit, known.categories) != (vital.unit, vital.categories):
                units = (known.unit or "/".join(known.categories), vital.unit or "/".join(vital.categories))
                raise UserError(
                    f"data.sources: {vital.name} is {units[0]} in {other} and {units[1]} in {name}; declare one unit"
                )
    return tuple(vital for _, vital in first.values())


def _parts(
    name: str, source: SourceConfig, cohort: Cohort, schema: VitalsSchema, labels: Sequence[str], columns: Sequence[str]
) -> Iterator[Columns]:
    """The rows of one source in the columns of all."""
    vitals, own = _places(cohort.schema.names, schema.names), _places(cohort.labels, labels)
    texts = _places([section.column for section in cohort.sections], columns)
    for part in cohort.dataset.iter(10_000):
        yield {
            **part,
            "id": [f"{name}/{id_}" for id_ in part["id"]],
            "patient": [f"{name}/{patient}" for patient in part["patient"]],
            "vitals": [_spread(row, vitals, float("nan")) for row in part["vitals"]],
            "labels": [_spread(row, own, float("nan")) for row in part["labels"]],
            "sections": [_spread(row, texts, None) for row in part["sections"]],  # None: not of this source
            "weight": [source.weight] * len(part["id"]),
        }


def _places(own: Sequence[str], of_all: Sequence[str]) -> list[int | None]:
    """For each name of all, where it stands among one's own."""
    return [list(own).index(name) if name in own else None for name in of_all]


def _spread(row: Sequence, places: Sequence[int | None], nothing: float | None) -> list:
    return [nothing if place is None else row[place] for place in places]
