"""What is read: tables, images, vitals, labels, reports, and the split."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class VitalConfig:
    """One clinical value of the vector x = [x1 ... xm], equation (3).

    Two are equal where their numbers mean the same; how tables spell or convert them does not count.
    """

    name: str = ""
    """Name of the value, also its column in the table; empty with `ready`: the name of the ready-made entry."""
    unit: str = ""
    """Unit in which the value is kept, and in which a bare number is given."""
    aliases: list[str] = field(default_factory=list, compare=False)
    """Other names that a table or a user may write."""
    categories: list[str] = field(default_factory=list)
    """The allowed words of a categorical value; empty for a number."""
    plausible: list[float] = field(default_factory=list)
    """[lowest, highest] physically possible number; outside it a value counts as missing, with a warning."""
    reference: list[float] = field(default_factory=list)
    """[lowest, highest] normal number, as a laboratory prints it; beyond it the encoder sees a low or high flag."""
    accepts: dict[str, list[float]] = field(default_factory=dict, compare=False)
    """Other unit → [factor, offset]: value in `unit` = factor × value + offset. Never guessed: the unit must be
    written in the cell or in the header."""
    loinc: str = field(default="", compare=False)
    """LOINC code of the measurement in this unit, under which FHIR resources carry it."""
    also_loinc: list[str] = field(default_factory=list, compare=False)
    """Further LOINC codes of the same measurement, in another unit, specimen or method: read, never written."""
    ready: str = field(default="", compare=False)
    """Ready-made entry to start from (`vlm/data/vitals.yaml`); what else is given here replaces its part."""


@dataclass(frozen=True)
class SectionConfig:
    """One part of the reference report, and the evidence without which nobody could write it."""

    column: str
    """Column of the table that holds the text."""
    needs: list[str] = field(default_factory=lambda: ["image"])
    """Evidence the text rests on: `image`, `vitals` (any of them) or names of vitals; [] for none."""
    otherwise: str = ""
    """Text to write where that evidence is missing; empty: the part is left out."""


@dataclass(frozen=True)
class TableConfig:
    """A user's own CSV or Parquet file, with a folder of images beside it."""

    file: str = "cases.csv"
    """Table, relative to `data.root`: `.csv`, `.tsv`, `.txt`, `.jsonl` (or gzipped), `.xlsx`, `.parquet` or a folder
    of these."""
    encoding: str | None = None
    """Encoding of a text table, as Python names it: `cp1251`, `gb18030`; null finds it."""
    sheet: str | None = None
    """Sheet of a workbook; null takes the only one that holds anything."""
    images: str = "."
    """Folder of the images, relative to `data.root`."""
    image: str | None = "image"
    """Column of the image's file name; null where there are no images."""
    id: str | None = None
    """Column of the case's id; null numbers the rows."""
    patient: str | None = None
    """Column of the patient's id, by which the data are split; null makes every row a patient."""
    split: str | None = None
    """Column with a fixed split (`train`, `validation`, `test`); null splits by a hash of the patient."""
    context: str | None = None
    """Column of free text to show in the prompt, such as an indication; null for none."""
    probability: str | None = None
    """Column of a known probability of pathology, for the correlation figure; null: the first label stands in."""
    labels: list[str] = field(default_factory=list)
    """Label columns of 0, 1 or nothing, or words such as yes and no; each becomes one output of the head."""
    uncertain: Literal["ignore", "positive", "negative"] | None = None
    """What -1 and words such as `uncertain` mean in a label: unknown, 1 or 0; null: unknown, with a warning."""
    vitals: list[VitalConfig | str] = field(default_factory=list)
    """Clinical values, each described or the name of a ready-made entry, such as glucose; order is kept."""
    report: list[SectionConfig] = field(default_factory=list)
    """Columns that make the reference report, in order."""
    label_findings: dict[str, str] = field(default_factory=dict)
    """Label → finding of the rule-based labeller that it stands for, to compare head and text; a label that is
    named like a finding needs no entry."""


@dataclass(frozen=True)
class PhantomConfig:
    """The built-in synthetic cohort."""

    cases: int = 2000
    """Number of cases to draw."""
    seed: int = 7
    """Seed of the cohort; the same seed draws the same cases."""
    missing: float = 0.04
    """Probability that a case lacks its image, its glucose or its blood pressure (each on its own)."""


@dataclass(frozen=True)
class CovidCxrConfig:
    """The public COVID-19 chest X-ray collection, in its own layout."""

    report: Literal["image_sentences", "whole_note"] = "image_sentences"
    """Target text: the sentences of the note that speak of the image, or the whole note."""


@dataclass(frozen=True)
class ChexpertConfig:
    """How the labels of the CheXpert labeller are taken; for `chexpert` and `mimic_cxr`."""

    uncertain: Literal["unknown", "positive", "negative"] = "unknown"
    """What -1 means."""
    blank: Literal["unknown", "positive", "negative"] = "negative"
    """What an observation means that the report does not mention."""


@dataclass(frozen=True)
class MimicCxrConfig:
    """Where the parts of MIMIC are."""

    reports: str | None = None
    """Folder that holds the reports' `files/`; null: `data.root`."""
    ed: str | None = None
    """Folder of MIMIC-IV-ED's edstays, triage and vitalsign tables; null: no vitals."""
    labeller: Literal["chexpert", "negbio"] = "chexpert"
    """Whose labels: the table `mimic-cxr-2.0.0-chexpert` or `-negbio`."""


Source = Literal[
    "phantom", "covid_cxr", "indiana", "mimic_cxr", "nih_cxr14", "chexpert", "image_folder", "table", "packed"
]  # fmt: skip
"""The readers; `table` is your own data, `packed` what `clinical-vlm pack` made of any of them."""


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources."""

    source: Source = "table"
    """Which reader."""
    root: str = "."
    """Folder of the data; of the source `packed` also an address such as `s3://bucket/folder`."""
    name: str = ""
    """What marks its ids and patients; empty: the reader's name."""
    weight: float = 1.0
    """How often a training case is drawn, against those of other sources."""
    labels: dict[str, str] = field(default_factory=dict)
    """Its label → what all sources call it."""
    table: TableConfig = field(default_factory=TableConfig)
    """Options of the source `table` and `image_folder`; its `labels` choose among those of other readers."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Options of the source `phantom`."""
    covid_cxr: CovidCxrConfig = field(default_factory=CovidCxrConfig)
    """Options of the source `covid_cxr`."""
    chexpert: ChexpertConfig = field(default_factory=ChexpertConfig)
    """Options of the sources `chexpert` and `mimic_cxr`."""
    mimic_cxr: MimicCxrConfig = field(default_factory=MimicCxrConfig)
    """Options of the source `mimic_cxr`."""


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the patients; a hash of the patient's id decides, so added rows move nobody."""

    validation: float = 0.1
    """Share of patients for validation."""
    test: float = 0.15
    """Share of patients for the final test."""
    seed: int = 0
    """Another seed is another split."""


@dataclass(frozen=True)
class DropoutConfig:
    """Evidence withheld at random in training, so that a missing input is a known case."""

    image: float = 0.1
    """Probability that a training case loses its image."""
    vitals: float = 0.05
    """Probability that a training case loses all its vitals."""
    value: float = 0.05
    """Probability that one value is lost, for each value on its own."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; never mirrored, a mirrored chest has its heart on the wrong side."""

    rotate: float = 0.0
    """Largest rotation, degrees."""
    shift: float = 0.0
    """Largest shift, share of the image's side."""
    scale: float = 0.0
    """Largest relative change of size."""
    contrast: float = 0.0
    """Largest relative change of contrast and of brightness."""


@dataclass(frozen=True)
class DataConfig:
    """Which cases are read, how they are split and what a training case goes through."""

    source: Source = "phantom"
    """Which reader; `table` is your own data, `packed` what `clinical-vlm pack` made of any of them."""
    root: str = "data/phantom"
    """Folder of the data; of the source `packed` also an address such as `s3://bucket/folder`."""
    interleave_shards: int = 8
    """Shards of packed data that training reads in parallel and mixes, 1 to 16; each process reads its share."""
    image_size: int = 224
    """Side of the square image given to the encoder, pixels, kept in aspect by padding; 0: that of its weights."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Options of the source `phantom`."""
    covid_cxr: CovidCxrConfig = field(default_factory=CovidCxrConfig)
    """Options of the source `covid_cxr`."""
    chexpert: ChexpertConfig = field(default_factory=ChexpertConfig)
    """Options of the sources `chexpert` and `mimic_cxr`."""
    mimic_cxr: MimicCxrConfig = field(default_factory=MimicCxrConfig)
    """Options of the source `mimic_cxr`."""
    table: TableConfig = field(default_factory=TableConfig)
    """Options of the source `table` and `image_folder`; its `labels` choose among those of other readers."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Several sources in place of the one above; labels that one of them does not have are unknown there."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Shares of the split."""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    """Evidence withheld at random in training."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training images."""
    finding_labels: list[str] = field(default_factory=list)
    """Findings of the reference reports, taught to the head as further labels: `pleural_effusion`, `left_opacity`."""
    withhold: list[Literal["image", "vitals"]] = field(default_factory=list)
    """Evidence withheld from every case, training and test alike: a control run. Reports stay as they are."""
