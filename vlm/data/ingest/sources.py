"""Registry of data readers by source name."""

from collections.abc import Callable
from dataclasses import replace

from vlm.config import DataConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.finding_labels import add_finding_labels
from vlm.data.ingest.joined import load_joined
from vlm.data.ingest.packed import load_packed
from vlm.data.ingest.phantom import load_phantom
from vlm.data.ingest.readers.chexpert import load_chexpert
from vlm.data.ingest.readers.chexpert_plus import load_chexpert_plus
from vlm.data.ingest.readers.covid_cxr import load_covid_cxr
from vlm.data.ingest.readers.hub_dataset import load_hub
from vlm.data.ingest.readers.image_folder import load_image_folder
from vlm.data.ingest.readers.indiana import load_indiana
from vlm.data.ingest.readers.mimic_cxr import load_mimic_cxr
from vlm.data.ingest.readers.nih_cxr14 import load_nih_cxr14
from vlm.data.ingest.readers.padchest import load_padchest
from vlm.data.ingest.readers.rexgradient import load_rexgradient
from vlm.data.ingest.readers.vindr_cxr import load_vindr_cxr
from vlm.data.ingest.table import load_table
from vlm.data.ingest.uninformative import cohort_notes
from vlm.findings.labeller import Labeller

SOURCES: dict[str, Callable[[DataConfig], Cohort]] = {
    "phantom": load_phantom,
    "covid_cxr": load_covid_cxr,
    "indiana": load_indiana,
    "mimic_cxr": load_mimic_cxr,
    "nih_cxr14": load_nih_cxr14,
    "chexpert": load_chexpert,
    "chexpert_plus": load_chexpert_plus,
    "padchest": load_padchest,
    "rexgradient": load_rexgradient,
    "vindr_cxr": load_vindr_cxr,
    "image_folder": load_image_folder,
    "table": load_table,
    "packed": load_packed,
    "hub": load_hub,
}


def load_cohort(data: DataConfig) -> Cohort:
    """Read the cases of `data.source`, or of all `data.sources`; raises `UserError` for anything wrong with them."""
    cohort = load_joined(data, _load_one) if data.sources else _load_one(data)
    cohort = add_finding_labels(cohort, data)
    # A pack keeps the notes from the time of packing.
    warnings = tuple(dict.fromkeys((*cohort.warnings, *cohort_notes(cohort))))
    return replace(cohort, warnings=warnings, findings=Labeller.load(data.findings).vocabulary.name)


def _load_one(data: DataConfig) -> Cohort:
    return SOURCES[data.source](data)
