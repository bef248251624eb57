"""Faults in the files of public collections: each is one line that names the file, and the row of a cell."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests import layouts
from vlm.config import DataConfig, MimicCxrConfig, SectionConfig, TableConfig
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError


def _without_vindr_test(root: Path) -> Path:
    layouts.vindr(root)
    (root / "annotations" / "image_labels_test.csv").unlink()
    return root


@pytest.mark.parametrize(
    ("source", "make", "lost", "message"),
    [
        ("nih_cxr14", layouts.nih, "Data_Entry_2017.csv", "no file Data_Entry_2017_v2020.csv or Data_Entry_2017.csv"),
        ("chexpert", layouts.chexpert, "train.csv", "no file train.csv"),
        (
            "mimic_cxr",
            lambda r: layouts.mimic(r) / "cxr",
            "mimic-cxr-2.0.0-split.csv.gz",
            "no file mimic-cxr-2.0.0-split",
        ),
        (
            "vindr_cxr",
            _without_vindr_test,
            "annotations/image_labels_train.csv",
            "no file annotations/image_labels_train.csv or image_labels_train.csv",
        ),
        ("image_folder", layouts.image_folder, "train/metadata.csv", "train: neither metadata.csv"),
    ],
)
def test_a_missing_file_is_named(source, make: Callable, lost: str, message: str, tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    (root / lost).unlink()
    with pytest.raises(UserError, match=message):
        load_cohort(DataConfig(source=source, root=str(root)))


def test_a_missing_column_and_a_broken_report_are_named(tmp_path: Path) -> None:
    root = layouts.nih(tmp_path / "nih")
    text = (root / "Data_Entry_2017.csv").read_text()
    (root / "Data_Entry_2017.csv").write_text(text.replace("Patient Age", "Age"))
    with pytest.raises(UserError, match=r"Data_Entry_2017\.csv: no column Patient Age"):
        load_cohort(DataConfig(source="nih_cxr14", root=str(root)))
    with pytest.raises(UserError, match=r"ecgen-radiology: no such folder; data\.root holds"):
        load_cohort(DataConfig(source="indiana", root=str(tmp_path / "nih")))
    (layouts.indiana(tmp_path / "iu") / "ecgen-radiology" / "1.xml").write_text("<eCitation>")
    with pytest.raises(UserError, match=r"1\.xml: no readable XML report"):
        load_cohort(DataConfig(source="indiana", root=str(tmp_path / "iu")))
    with pytest.raises(UserError, match=r"data\.table\.labels: Oedema is none of Enlarged"):
        data = DataConfig(source="chexpert", root=str(layouts.chexpert(tmp_path / "c")))
        load_cohort(replace(data, table=TableConfig(labels=["Oedema"])))


@pytest.mark.parametrize(
    ("source", "make", "file", "old", "new", "message"),
    [
        ("nih_cxr14", layouts.nih, "Data_Entry_2017.csv", "Hernia", "Hernias",
         r"Data_Entry_2017\.csv: row 4: Finding Labels: 'Hernias' is not of this collection"),
        ("nih_cxr14", layouts.nih, "Data_Entry_2017.csv", "Patient Gender", "Gender", "no column Patient Gender or"),
        ("nih_cxr14", layouts.nih, "Data_Entry_2017.csv", ",21,", ",xx,", r"2017\.csv: row 3: age: 'xx' is "),
        ("chexpert", layouts.chexpert, "train.csv", "-1.0", "7.0", r"train\.csv: row 3: Edema: '7\.0' is no label"),
        ("chexpert", layouts.chexpert, "valid.csv", "frontal.jpg,Female,61", "frontal.jpg,Female,xx",
         r"valid\.csv: row 2: age: 'xx' is not a number"),
        ("mimic_cxr", layouts.mimic, "cxr/mimic-cxr-2.0.0-split.csv.gz", ",train", ",tarin",
         r"split\.csv\.gz: row 2: split: 'tarin' is none of train"),
        ("mimic_cxr", layouts.mimic, "cxr/mimic-cxr-2.0.0-chexpert.csv.gz", "1.0", "yes",
         r"chexpert\.csv\.gz: row 2: Edema: 'yes' is no label"),
        ("mimic_cxr", layouts.mimic, "cxr/mimic-cxr-2.0.0-metadata.csv.gz", "PA,21800506", "PA,2180-05-06",
         r"metadata\.csv\.gz: row 2: StudyDate and StudyTime: '2180-05-06213014' is no date and time"),
        ("mimic_cxr", layouts.mimic, "ed/vitalsign.csv", "2180-05-06 21:00:00", "06/05/2180 9pm",
         r"vitalsign\.csv: row 2: charttime: '06/05/2180 9pm' is no date and time"),
        ("mimic_cxr", layouts.mimic, "ed/edstays.csv", "2180-05-07 15:00:00", "soon", r"row 3: outtime: 'soon' is no"),
        ("vindr_cxr", layouts.vindr, "annotations/image_labels_train.csv", "aa,R0,0,", "aa,R0,2,",
         r"image_labels_train\.csv: row 2: Aortic enlargement: '2' is no label; 1, 0 or nothing"),
        ("vindr_cxr", layouts.vindr, "annotations/image_labels_train.csv", "aa,R1", "aa,R0",
         r"image_labels_train\.csv: row 3: image_id: 'aa' is read twice by one radiologist"),
        ("vindr_cxr", layouts.vindr, "annotations/image_labels_test.csv", ",COPD,", ",Other,",
         r"image_labels_test\.csv: no column COPD"),
        ("image_folder", layouts.image_folder, "train/metadata.csv", ",7,0,", ",7,maybe,",
         r"train/metadata\.csv: row 4: edema: 'maybe' is no label"),
        ("image_folder", layouts.image_folder, "test/metadata.csv", "1.png", "9.png",
         r"test/metadata\.csv: row 3: no image file"),
    ],
)  # fmt: skip
def test_a_faulty_cell_is_named_with_its_file_and_row(source, make, file, old, new, message, tmp_path, recwarn) -> None:
    make(tmp_path)
    path, packed = tmp_path / file, file.endswith("gz")
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    assert old in text
    changed = text.replace(old, new, 1).encode()
    path.write_bytes(gzip.compress(changed) if packed else changed)
    table = TableConfig(patient="who", labels=["edema"], vitals=["glucose"], report=[SectionConfig("text")])
    root = tmp_path / "cxr" if source == "mimic_cxr" else tmp_path
    data = DataConfig(source=source, root=str(root), mimic_cxr=MimicCxrConfig(ed=str(tmp_path / "ed")))
    with pytest.raises(UserError, match=message):
        load_cohort(replace(data, table=table) if source == "image_folder" else data)
    assert not recwarn.list, "and nothing else is printed"


def test_broken_lines_and_lost_folders_are_named(tmp_path: Path) -> None:
    for name, text in (("a", "{"), ("b", "[1]\n"), ("c", '{"file_name": ""}\n' + "[" * 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.jsonl").write_text(text)
        with pytest.raises(UserError, match=rf"metadata\.jsonl: row {2 if name == 'c' else 1} is no JSON object"):
            load_cohort(DataConfig(source="image_folder", root=str(tmp_path / name)))
    root = layouts.mimic(tmp_path / "m")
    with pytest.raises(UserError, match=r"no such folder; set data\.mimic_cxr\.ed"):
        data = DataConfig(source="mimic_cxr", root=str(root / "cxr"))
        load_cohort(replace(data, mimic_cxr=MimicCxrConfig(ed=str(root / "ER"))))
