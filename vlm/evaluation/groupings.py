"""Divide test cases into groups by vitals, views, sources, what is missing, or columns of their table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import datasets
import numpy as np

from vlm.config import Config, VitalConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.column_names import find_column
from vlm.data.ingest.measurements import cell_text
from vlm.data.ingest.read import TableOptions, read_chunks
from vlm.data.storage import matrix
from vlm.data.study import flat_images
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.synonyms import is_missing_word
from vlm.errors import UserError
from vlm.plain import is_clean
from vlm.statistics.intervals import FEWEST_PATIENTS

DEFAULT = ("sex", "age", "missing")
"""Groupings without `evaluation.subgroups`, as far as the vitals have them."""
ADULTS = {"under 40": (-np.inf, 40), "40 to 64": (40, 65), "65 and older": (65, np.inf)}
"""Bands of an age in years: lowest, and the first above."""
MOST_GROUPS = 12
"""Most groups of a grouping, those of the most cases; the others are one group."""
FEWEST_DISTINCT = 10
"""Fewest different numbers of a table's column that are put in bands; fewer are groups themselves."""
LONGEST_NAME = 40
OTHERS = "other values"


@dataclass(frozen=True)
class Grouping:
    """Groups of N cases by one property; a case may be in several, and in none where the property is not known."""

    name: str
    groups: dict[str, np.ndarray]
    """Name of a group → N, bool."""
    unknown: int = 0
    """Number of cases in no group."""

    @classmethod
    def of(cls, name: str, groups: Mapping[str, np.ndarray], count: int) -> "Grouping":
        """Keep the groups that have a case, of N cases in all."""
        inside = np.any(list(groups.values()), axis=0) if groups else np.zeros(count, dtype=bool)
        return cls(name, {group: cases for group, cases in groups.items() if cases.any()}, int((~inside).sum()))


def check_subgroups(config: Config, cohort: Cohort) -> None:
    """Raise `UserError` for a name in `evaluation.subgroups` that is nothing to group by, before a long run begins."""
    all_groupings(config, cohort, cohort.dataset.select([]))


def all_groupings(config: Config, cohort: Cohort, rows: datasets.Dataset) -> list[Grouping]:
    """Divide test cases as `evaluation.subgroups` says; without it by sex, age and what is missing.

    Raises `UserError` for a name that is neither a vital, `view`, `source` or `missing` nor a column of the table.
    """
    wanted, schema = config.evaluation.subgroups, cohort.schema
    names = [name for name in DEFAULT if wanted is None and (name == "missing" or schema.names_in(name))]
    names = list(dict.fromkeys(names if wanted is None else wanted))
    vitals = matrix(rows, "vitals", len(schema)).astype(np.float64)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in names:
        if len(known := schema.names_in(name)) == 1:
            place = schema.position(known[0])
            found[name] = _of_vital(schema.vitals[place], vitals[:, place], known == schema.names_in("age"))
    special = {"missing": lambda: _missing(schema, vitals, rows), "view": lambda: _by_text(_views(rows)),
               "source": lambda: _by_text(list(rows["source"]))}  # fmt: skip
    found |= {name: special[name]() for name in names if name not in found and name in special}
    columns = [name for name in names if name not in found]
    for name, texts in table_columns(config, columns, rows["id"]).items() if columns else ():
        found[name] = _of_texts(texts, rows["patient"])
    return [Grouping.of(name, found[name], len(rows)) for name in names]


def _of_vital(vital: VitalConfig, values: np.ndarray, is_age: bool) -> dict[str, np.ndarray]:
    """Group N values of a vital, NaN where missing: by category, by age, or by quartile."""
    if vital.categories:
        return {word: values == place for place, word in enumerate(vital.categories)}
    return _bands(values, ADULTS if is_age and vital.unit == "years" else quartiles(values, vital.unit))


def _bands(values: np.ndarray, bands: Mapping[str, tuple[float, float]]) -> dict[str, np.ndarray]:
    return {name: (values >= low) & (values < high) for name, (low, high) in bands.items()}


def quartiles(values: np.ndarray, unit: str = "") -> dict[str, tuple[float, float]]:
    """Name the bands between the quartiles of some values (N, NaN where missing), with their bounds."""
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75])) if len(known) else np.empty(0)
    edges = edges[edges > known.min(initial=np.inf)]
    if not len(edges):
        return {"all that are known": (-np.inf, np.inf)}
    shown = [f"{edge:.4g}" for edge in edges]
    names = [f"under {shown[0]}", *(f"{a} to under {b}" for a, b in pairwise(shown)), f"{shown[-1]} or more"]
    bounds = zip([-np.inf, *edges], [*edges, np.inf], strict=True)
    return {f"{name} {unit}".strip(): pair for name, pair in zip(names, bounds, strict=True)}


def _missing(schema: VitalsSchema, vitals: np.ndarray, rows: datasets.Dataset) -> dict[str, np.ndarray]:
    """Group cases by what they lack; one that lacks two things is in two groups."""
    images = flat_images(rows)
    current = np.bincount(images.row[~images.prior], minlength=len(rows)) > 0
    lacks = {vital.name: np.isnan(vitals[:, schema.position(vital.name)]) for vital in schema.given}
    lacks = {f"without {name}": cases for name, cases in lacks.items()} | {"without an image": ~current}
    lacks = dict(sorted(lacks.items(), key=lambda pair: -pair[1].sum())[: MOST_GROUPS - 1])
    return {"nothing missing": ~np.any(list(lacks.values()), axis=0), **lacks}


def _views(rows: datasets.Dataset) -> list[str]:
    """Name the views of each case's current images, such as `PA + lateral`."""
    images = flat_images(rows)
    views: list[set[str]] = [set() for _ in range(len(rows))]
    for place, view, prior in zip(images.row, images.views, images.prior, strict=True):
        if not prior and view:
            views[place].add(view)
    return [" + ".join(sorted(found)) for found in views]


def _by_text(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Group cases by their text, the commonest first; a case without one is in no group."""
    values = np.array(texts, dtype=object)
    names, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    ordered = names[np.argsort(-counts, kind="stable")].tolist()
    groups = {str(name): np.asarray(values == name, dtype=bool) for name in ordered[:MOST_GROUPS]}
    if len(ordered) > MOST_GROUPS:
        groups[OTHERS] = np.isin(values.astype(str), ordered[MOST_GROUPS:])
    return groups


def _of_texts(texts: Sequence[str], patients: Sequence[str]) -> dict[str, np.ndarray]:
    """Group cases by a column of their table: numbers in quartiles, words by themselves.

    Words of under ten patients become one group: they could name a person, and metrics are shared with an adapter.
    """
    numbers = np.array([_number(text) for text in texts], dtype=np.float64)
    known = np.array([bool(text) for text in texts], dtype=bool)
    if not np.isnan(numbers[known]).any() and len(np.unique(numbers[known])) >= FEWEST_DISTINCT:
        return _bands(numbers, quartiles(numbers))
    who: dict[str, set[str]] = {}
    for text, patient in zip(texts, patients, strict=True):
        who.setdefault(text, set()).add(patient)
    rare = {text for text, people in who.items() if len(people) < FEWEST_PATIENTS or not _is_name(text)}
    return _by_text([OTHERS if text and text in rare else text for text in texts])


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and is_clean(text) and not set(text) & set("|<>`")


def _number(text: str) -> float:
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return np.nan


def table_columns(config: Config, names: Sequence[str], ids: Sequence[str]) -> dict[str, list[str]]:
    """Read further columns of the table of the cases `ids`; of a study with several rows the first.

    Raises `UserError` for a column that is not there, and for cases of another source.
    """
    data, table = config.data, config.data.table
    if data.source != "table" or data.sources:
        known = "a vital, view, source or missing"
        raise UserError(f"evaluation.subgroups: {names[0]} is none of {known}; columns are those of the source table")
    path, wanted = data.folder / table.file, set(ids)
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for frame in read_chunks(path, options=TableOptions(table.encoding, table.sheet)):
        columns = {name: frame[find_column(frame.columns, name, f"evaluation.subgroups: {path}")] for name in names}
        own = table.study or table.id
        cases = frame[find_column(frame.columns, own, str(path))].map(cell_text) if own else frame.index.map(_row_name)
        for name, cells in columns.items():
            for case, cell in zip(cases, cells, strict=True):
                if case in wanted:
                    text = cell_text(cell)
                    found[name].setdefault(case, "" if is_missing_word(text) else text)
    return {name: [texts.get(case, "") for case in ids] for name, texts in found.items()}


def _row_name(number: int) -> str:
    """Name the case of a row in a table without ids, as the reader does."""
    return f"row-{number + 2}"
