"""The readers of each kind of data, by name."""

from collections.abc import Callable

from vlm.config import DataConfig
from vlm.data.cohort import Cohort
from vlm.data.covid_cxr import load_covid_cxr
from vlm.data.finding_labels import add_finding_labels
from vlm.data.phantom import load_phantom
from vlm.data.table import load_table

SOURCES: dict[str, Callable[[DataConfig], Cohort]] = {
    "phantom": load_phantom,
    "covid_cxr": load_covid_cxr,
    "table": load_table,
}


def load_cohort(data: DataConfig) -> Cohort:
    """Read the cases of `data.source`; raises `UserError` for anything wrong with them."""
    return add_finding_labels(SOURCES[data.source](data), data)
