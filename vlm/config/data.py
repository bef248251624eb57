"""Options of tables, images, vitals, labels, reports and the split."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlm.config.augment import AugmentConfig, DropoutConfig
from vlm.config.over_time import Hours, MeasurementsConfig, SeriesColumnConfig
from vlm.config.signal_options import SignalColumnConfig


@dataclass(frozen=True)
class VitalConfig:
    """One clinical value of the vector x = [x1 ... xm], equation (3).

    Two are equal if their numbers mean the same; spellings and conversions are not compared.
    """

    name: str = ""
    """Name of the value and of its column; empty with `ready`: the name of the ready-made entry."""
    unit: str = ""
    """Unit of the value, also of a number without one."""
    aliases: list[str] = field(default_factory=list, compare=False)
    """Other names of the column."""
    categories: list[str] = field(default_factory=list)
    """Allowed words of a categorical value; empty for a number."""
    plausible: list[float] = field(default_factory=list)
    """[lowest, highest] possible number; outside it a value counts as missing, with a warning."""
    reference: list[float] = field(default_factory=list)
    """[lowest, highest] normal number; beyond it the encoder sees a low or high flag."""
    accepts: dict[str, list[float]] = field(default_factory=dict, compare=False)
    """Other unit → [factor, offset]: value in `unit` = factor × value + offset, where cell or header name the unit."""
    loinc: str = field(default="", compare=False)
    """LOINC code of the measurement in this unit, for FHIR."""
    also_loinc: list[str] = field(default_factory=list, compare=False)
    """LOINC codes in other units, specimens or methods; read from FHIR, not written."""
    ready: str = field(default="", compare=False)
    """Ready-made entry to start from (`vlm/data/vitals.yaml`); the other keys replace its parts."""
    over_time: bool = False
    """A series of values with their times: the model is told the last, change, slope, time since and count."""
    steady: float = 0.0
    """Largest change of a series, in `unit`, that counts as stable; 0: no state falling, stable or rising."""
    of: str = ""
    """Series that this vital is computed from; set by `over_time`, never by hand."""
    feature: Literal["", "change", "slope", "hours_since", "count"] = ""
    """What is computed from it; set by `over_time`, never by hand."""


@dataclass(frozen=True)
class SectionConfig:
    """One part of the reference report and the evidence it needs."""

    column: str
    """Column of the table that holds the text."""
    needs: list[str] = field(default_factory=lambda: ["image"])
    """Evidence the text needs: `image`, `vitals` (any of them), `prior`, `context`, `signal`, names of vitals or of
    views; [] for none."""
    otherwise: str = ""
    """Target text where that evidence is missing; empty leaves the part out."""
    name: str = ""
    """Name of the part, its heading with `data.section_headings`; empty: the column's, `_` as a space."""


@dataclass(frozen=True)
class StudyImageConfig:
    """One further column of images of a study, beside `image`."""

    column: str
    """Column of the file's name, or of several: see `image_separator`."""
    view: str = ""
    """View of all its images, such as `lateral`; empty: not known, or said by `view_column`."""
    view_column: str | None = None
    """Column of the view, in place of `view`."""
    prior: bool = False
    """Whether the images are of an earlier study."""
    days: str | None = None
    """Column of the days from the earlier study to this one; null or an empty cell: not known."""


@dataclass(frozen=True)
class TableConfig:
    """A user's own table and folder of images."""

    file: str = "cases.csv"
    """Table, relative to `data.root`: `.csv`, `.tsv`, `.txt`, `.jsonl`, `.json` (or gzipped), `.xlsx`, `.parquet` or a
    folder of these."""
    encoding: str | None = None
    """Encoding of a text table, as Python names it: `cp1251`, `gb18030`; null detects it."""
    sheet: str | None = None
    """Sheet of a workbook; null takes the only one with content."""
    images: str = "."
    """Folder of the images, relative to `data.root`."""
    image: str | None = "image"
    """Column of the image's file name; null without images."""
    view: str | None = None
    """Column of the view of `image`: PA, AP, lateral or any other word."""
    study_images: list[StudyImageConfig] = field(default_factory=list)
    """Columns of further images of a study: other views, or those of an earlier study."""
    image_separator: str | None = None
    """What separates several names in one cell, such as `;`; null: a cell names one image, a list several."""
    study: str | None = None
    """Column of the study's id, for a table with one row an image: rows of one study become one case."""
    order: str | None = None
    """Column of the study's number among those of its patient, for `priors` where their times are not known."""
    priors: int = 0
    """Most earlier studies of the same patient that a case shows, by `time`, `origin` or `order`, the latest first,
    with the report of the latest; 0 for none."""
    prior_report: str | None = None
    """Column of the report of an earlier study; it goes before that of `priors`."""
    id: str | None = None
    """Column of the case's id; null numbers the rows."""
    patient: str | None = None
    """Column of the patient's id, by which data are split; null makes each row a patient."""
    split: str | None = None
    """Column with a fixed split (`train`, `validation`, `test`); null splits by a hash of the patient."""
    context: str | None = None
    """Column of free text to show in the prompt, such as an indication; null for none."""
    signal: SignalColumnConfig = field(default_factory=SignalColumnConfig)
    """Signal of each case, such as an ECG."""
    probability: str | None = None
    """Column of a known probability of pathology, for the correlation figure; null takes the first label."""
    labels: list[str] = field(default_factory=list)
    """Label columns (0, 1, yes, no, empty); each becomes one output of the head."""
    uncertain: Literal["ignore", "positive", "negative"] | None = None
    """What -1 and words such as `uncertain` mean in a label: unknown, 1 or 0; null: unknown, with a warning."""
    vitals: list[VitalConfig | str] = field(default_factory=list)
    """Clinical values in order: a description, or the name of a ready-made entry such as glucose."""
    time: str | None = None
    """Column of the study's time, for series and `priors`: a date (`2024-03-01`, `20240301`), with its time or not, or
    a number in `time_unit` from any origin."""
    origin: str | None = None
    """Column of an event common to a patient's studies, such as the admission, as its time from this study: `-2 d`; in
    place of `time`."""
    time_unit: Hours = ""
    """Unit of times that are numbers alone; from the origin of `time`, else from the study."""
    series: list[SeriesColumnConfig] = field(default_factory=list)
    """Columns of values over time, several for one vital too; a cell may also hold a whole series."""
    series_of: Literal["case", "patient"] = "case"
    """Whose values a series joins: those of its row alone, or all of the patient's rows up to the study."""
    measurements: MeasurementsConfig = field(default_factory=MeasurementsConfig)
    """Table with one measurement a row."""
    report: list[SectionConfig] = field(default_factory=list)
    """Columns of the reference report, in order."""
    label_findings: dict[str, str] = field(default_factory=dict)
    """Label → finding of the labeller, or a phrase with side or zone (`opacity in the right lung`), to compare head and
    text; a label named like a finding needs no entry."""


@dataclass(frozen=True)
class PhantomConfig:
    """The built-in synthetic cohort."""

    cases: int = 2000
    """Cases to draw."""
    seed: int = 7
    """Seed of the cohort; the same seed draws the same cases."""
    missing: float = 0.04
    """Probability that a case lacks its image, glucose or blood pressure, each independently."""
    study: bool = False
    """Draw studies: a lateral view, a prior picture, glucose over time and an indication, each of which alone shows
    something."""


@dataclass(frozen=True)
class CovidCxrConfig:
    """The public COVID-19 chest X-ray collection, in its own layout."""

    report: Literal["image_sentences", "whole_note"] = "image_sentences"
    """Target text: the note's sentences about the image, or the whole note."""


@dataclass(frozen=True)
class ChexpertConfig:
    """Meaning of CheXpert labels, for `chexpert` and `mimic_cxr`."""

    uncertain: Literal["unknown", "positive", "negative"] = "unknown"
    """Meaning of -1."""
    blank: Literal["unknown", "positive", "negative"] = "negative"
    """Meaning of a blank, an observation not mentioned."""


@dataclass(frozen=True)
class MimicCxrConfig:
    """Folders and labeller of MIMIC-CXR."""

    reports: str | None = None
    """Folder with the reports' `files/`; null: `data.root`."""
    ed: str | None = None
    """Folder of MIMIC-IV-ED's edstays, triage and vitalsign tables; null: no vitals."""
    labeller: Literal["chexpert", "negbio"] = "chexpert"
    """Labels to read: `mimic-cxr-2.0.0-chexpert` or `-negbio`."""


Source = Literal[
    "phantom", "covid_cxr", "indiana", "mimic_cxr", "nih_cxr14", "chexpert", "chexpert_plus", "padchest", "rexgradient",
    "vindr_cxr", "image_folder", "table", "packed", "hub"
]  # fmt: skip
"""The readers; `table` is your own data, `packed` shards of `clinical-vlm pack`, `hub` a dataset of the Hub."""


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources."""

    source: Source = "table"
    """Reader."""
    root: str = "."
    """Folder of the data; `package:skin`: the pictures of the package; for `packed` also `s3://bucket/folder`; for
    `hub` also `hf://datasets/OWNER/NAME@REVISION`."""
    name: str = ""
    """Prefix of its ids and patients; empty: the reader's name."""
    weight: float = 1.0
    """Relative frequency of drawing its training cases."""
    labels: dict[str, str] = field(default_factory=dict)
    """Its label → the common name."""
    table: TableConfig = field(default_factory=TableConfig)
    """Options of `table`, `image_folder` and `hub`; `labels` chooses among labels of any reader."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Options of `phantom`."""
    covid_cxr: CovidCxrConfig = field(default_factory=CovidCxrConfig)
    """Options of `covid_cxr`."""
    chexpert: ChexpertConfig = field(default_factory=ChexpertConfig)
    """Options of `chexpert` and `mimic_cxr`."""
    mimic_cxr: MimicCxrConfig = field(default_factory=MimicCxrConfig)
    """Options of `mimic_cxr`."""


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the patients, divided by a hash of the patient's id: added rows move nobody."""

    validation: float = 0.1
    """Share of patients for validation."""
    test: float = 0.15
    """Share of patients for the final test."""
    seed: int = 0
    """Seed of the hash."""
    folds: int = 0
    """Number of folds, each of which is the test split once, in place of `test`; 0: none."""
    fold: int = 0
    """Fold that is the test split, from 0."""


@dataclass(frozen=True)
class DataConfig:
    """Source, split and augmentation of the cases."""

    source: Source = "phantom"
    """Reader; `table` is your own data, `packed` shards of `clinical-vlm pack`, `hub` a dataset of the Hub."""
    root: str = "data/phantom"
    """Folder of the data; for `packed` also an address such as `s3://bucket/folder`, for `hub`
    `hf://datasets/OWNER/NAME@REVISION`."""
    interleave_shards: int = 8
    """Packed shards that training interleaves, 1 to 16; each process reads its share."""
    image_size: int = 224
    """Side of the encoder's square image, pixels; padding keeps the aspect; 0: that of its weights."""
    color: Literal["auto", "grey", "rgb"] = "auto"
    """Whether the model sees pictures in colour (sRGB) or as luminance with stretched contrast; auto: in colour where
    most training images are."""
    studies: bool = False
    """Read whole studies of a public collection: laterals and earlier studies of the patient too; false: frontal images
    alone."""
    max_images: int = 5
    """Most images of a study, current and prior, that a case shows."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Options of `phantom`."""
    covid_cxr: CovidCxrConfig = field(default_factory=CovidCxrConfig)
    """Options of `covid_cxr`."""
    chexpert: ChexpertConfig = field(default_factory=ChexpertConfig)
    """Options of `chexpert` and `mimic_cxr`."""
    mimic_cxr: MimicCxrConfig = field(default_factory=MimicCxrConfig)
    """Options of `mimic_cxr`."""
    table: TableConfig = field(default_factory=TableConfig)
    """Options of `table`, `image_folder` and `hub`; `labels` chooses among labels of any reader."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Several sources, in place of `source`; a label that one lacks is unknown there."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Shares of the split."""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    """Evidence withheld at random in training."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training images."""
    finding_labels: list[str] = field(default_factory=list)
    """Findings read from the reference reports as further labels, such as `pleural_effusion`, `left_opacity`."""
    findings: str = "chest_en"
    """Vocabulary by which findings are read from reports and drafts: `chest_en`, `chest_uk`, `dermoscopy_en`, `ecg_de`,
    or your own `.yaml` file of the same layout."""
    section_headings: bool = False
    """Write each part of a report under its name, `Findings: … Impression: …`; drafts are split at these again."""
    withhold: list[Literal["image", "vitals", "signal"]] = field(default_factory=list)
    """Evidence withheld from every case, in training and test, for a control run; reports stay as they are."""

    @property
    def folder(self) -> Path:
        """Return the folder that `root` names."""
        name = self.root.removeprefix("package:")
        return Path(self.root) if name == self.root else Path(__file__).parents[1] / "data" / name
