"""Ready-made readers, against small collections in the documented layouts."""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import layouts
from tests.cells import first_image
from vlm.config import (
    ChexpertConfig,
    DataConfig,
    MimicCxrConfig,
    SectionConfig,
    SourceConfig,
    SplitConfig,
    TableConfig,
    VitalConfig,
)
from vlm.data.case import CaseSpec
from vlm.data.cohort import Cohort
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError


def rows_of(cohort: Cohort) -> dict[str, dict]:
    """Id → row, with labels and vitals by name and NaN as None."""
    plain = lambda x: None if x != x else round(x, 3)  # noqa: E731
    return {
        row["id"]: {
            **row,
            "labels": {n: plain(x) for n, x in zip(cohort.labels, row["labels"], strict=True)},
            "vitals": {n: plain(x) for n, x in zip(cohort.schema.names, row["vitals"], strict=True)},
            "image": (first_image(row) or {}).get("path"),
        }
        for row in cohort.dataset
    }


def test_nih(tmp_path: Path) -> None:
    cohort = load_cohort(DataConfig(source="nih_cxr14", root=str(layouts.nih(tmp_path))))
    rows = rows_of(cohort)
    assert len(rows) == 23 and any("1 rows without their image file left out" in text for text in cohort.warnings)
    first = rows["00000000_000.png"]
    assert first["labels"]["Cardiomegaly"] == first["labels"]["Effusion"] == 1 and first["labels"]["Hernia"] == 0
    assert first["vitals"] == {"age": 20, "sex": 1} and first["image"].endswith("images_001/images/00000000_000.png")
    ages = [rows[f"{i:08d}_000.png"]["vitals"]["age"] for i in (5, 8, 9, 10, 11)]
    assert ages == [None, 0, 58, 0.5, pytest.approx(0.1, abs=0.01)], "414 years are nobody's age, 0 is a newborn's"
    assert not any(x is not None for x in rows["00000013_000.png"]["labels"].values()), "an empty cell says nothing"
    assert all((row["split"] == "test") == (int(row["patient"]) >= 18) for row in rows.values())
    assert not any(rows["00000001_000.png"]["labels"].values())


def test_chexpert(tmp_path: Path) -> None:
    data = DataConfig(source="chexpert", root=str(layouts.chexpert(tmp_path)))
    cohort = load_cohort(data)
    rows = rows_of(cohort)
    edema = [rows[f"train/patient{i:05d}/study1/view1_frontal.jpg"]["labels"]["Edema"] for i in (0, 1, 2, 7)]
    assert edema == [1, None, 0, 0] and len(rows) == 14
    assert any("2 rows of lateral views left out" in text for text in cohort.warnings)
    assert set(rows["train/patient00001/study1/view1_frontal.jpg"]["labels"].values()) == {0, None}
    assert rows["valid/patient64541/study1/view1_frontal.jpg"]["split"] == "test"
    assert rows["train/patient00004/study1/view1_frontal.jpg"]["vitals"] == {"age": None, "sex": None}
    assert rows["train/patient00001/study1/view1_frontal.jpg"]["vitals"] == {"age": 41, "sex": 0}
    other = load_cohort(
        replace(data, chexpert=ChexpertConfig("positive", "unknown"), table=TableConfig(labels=["Edema"]))
    )
    values = rows_of(other)
    assert other.labels == ("Edema",)
    assert [values[f"train/patient{i:05d}/study1/view1_frontal.jpg"]["labels"]["Edema"] for i in (1, 2)] == [1, None]


def test_indiana(tmp_path: Path) -> None:
    data = DataConfig(source="indiana", root=str(layouts.indiana(tmp_path)))
    cohort = load_cohort(data)
    rows = rows_of(cohort)
    assert set(rows) == {"1", "2", "3", "5", "7", "8"}, "4 has no words and 6 no image"
    assert rows["1"]["sections"] == ["The heart is normal in size.", "No acute disease."]
    assert rows["1"]["context"] == "Cough" and rows["1"]["image"].endswith("CXR1_1_IM-0001-1001.png")
    assert [rows[name]["labels"]["abnormal"] for name in ("1", "2")] == [0, 1]
    (tmp_path / "NLMCXR_png" / "CXR2_1_IM-0002-1001.png").unlink()
    assert rows_of(load_cohort(data))["2"]["image"].endswith("2001.png"), "the first image that is there"
    (tmp_path / "indiana_projections.csv").write_text("uid,filename,projection\n1,1_IM-0001-2001.dcm.png,Frontal\n")
    only = rows_of(load_cohort(data))
    assert set(only) == {"1"} and only["1"]["image"].endswith("2001.png")


def test_mimic(tmp_path: Path) -> None:
    root = layouts.mimic(tmp_path)
    data = DataConfig(source="mimic_cxr", root=str(root / "cxr"), mimic_cxr=MimicCxrConfig(ed=str(root / "ed")))
    cohort = load_cohort(data)
    rows = rows_of(cohort)
    assert set(rows) == {f"5000000{i}-pa" for i in (1, 2, 3)}
    first = rows["50000001-pa"]
    # Charted at 21:00, before the image of 21:30; what was not measured then is of triage, 22:00 is too late.
    assert first["vitals"] == {"temperature": pytest.approx(36.889, abs=1e-3), "heart_rate": 80, "respiratory_rate": 16,
                               "spo2": 96, "systolic": 110, "diastolic": 65}  # fmt: skip
    assert not any(rows["50000002-pa"]["vitals"].values()), "no stay, no vitals"
    assert rows["50000003-pa"]["vitals"]["temperature"] == 37.5 and rows["50000003-pa"]["split"] == "test"
    assert first["sections"] == ["Heart size is normal.", "No pneumonia."] and first["context"] == "___F with cough"
    assert first["labels"]["Edema"] == 1 and first["labels"]["Pneumonia"] == 0
    without = rows_of(load_cohort(replace(data, mimic_cxr=MimicCxrConfig())))
    assert not any(without["50000001-pa"]["vitals"].values())


def test_mimic_takes_what_is_there(tmp_path: Path) -> None:
    root = layouts.mimic(tmp_path) / "cxr"
    data = DataConfig(source="mimic_cxr", root=str(root))
    labels = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    rows = gzip.decompress(labels.read_bytes()).decode().splitlines(keepends=True)
    labels.write_bytes(gzip.compress("".join(rows[:-1]).encode()))  # without study 50000003
    negbio = "".join(rows).replace("1.0", "0.0").encode()
    (root / "mimic-cxr-2.0.0-negbio.csv.gz").write_bytes(gzip.compress(negbio))
    split = root / "mimic-cxr-2.0.0-split.csv.gz"
    text = gzip.decompress(split.read_bytes()).decode()
    split.write_bytes(gzip.compress(text.replace("50000002-pa,50000002,10000001,train\n", "").encode()))
    (root / "files/p10/p10000001/s50000001/50000001-pa.jpg").unlink()
    cohort = load_cohort(data)
    found = rows_of(cohort)
    assert set(found) == {"50000001-ap", "50000002-ap", "50000003-pa"}, "the first image on disk and in the split"
    assert set(found["50000003-pa"]["labels"].values()) == {None}, "a study that was not labelled is unknown"
    assert found["50000001-ap"]["labels"]["Edema"] == 1 and found["50000001-ap"]["labels"]["Fracture"] == 0
    said = " ".join(cohort.warnings)
    assert "1 rows absent from the table of the split" in said and "1 rows without their image file" in said
    other = rows_of(load_cohort(replace(data, mimic_cxr=MimicCxrConfig(labeller="negbio"))))
    assert other["50000001-ap"]["labels"]["Edema"] == 0


def test_image_folder_with_a_table_and_with_class_folders(tmp_path: Path) -> None:
    table = TableConfig(patient="who", labels=["edema"], vitals=["glucose"], report=[SectionConfig("text")])
    rows = rows_of(
        load_cohort(DataConfig(source="image_folder", root=str(layouts.image_folder(tmp_path / "a")), table=table))
    )
    assert len(rows) == 8 and rows["test/1.png"]["split"] == "test" and rows["train/3.png"]["labels"] == {"edema": 1}
    assert rows["train/3.png"]["vitals"] == {"glucose": 8} and rows["train/3.png"]["sections"] == ["Clear lungs."]
    for index, name in enumerate(("covid", "normal", "covid")):
        layouts.picture(tmp_path / "b" / name / f"{index}.png")
    layouts.picture(tmp_path / "b" / "image" / "3.png")
    found = rows_of(load_cohort(DataConfig(source="image_folder", root=str(tmp_path / "b"))))
    assert found["covid/0.png"]["labels"] == {"covid": 1, "image": 0, "normal": 0} and len(found) == 4


def test_one_metadata_table_in_the_root(tmp_path: Path) -> None:
    lines = []
    for index, split in enumerate(("train", "train", "val", "test")):
        layouts.picture(tmp_path / split / f"{index}.png")
        row = {"file_name": f"{split}/{index}.png", "glucose": 5 + index, "edema": index % 2, "text": "Clear."}
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    table = TableConfig(id="glucose", labels=["edema"], vitals=["glucose"], report=[SectionConfig("text")])
    data = DataConfig(source="image_folder", root=str(tmp_path), table=table)
    assert [row["split"] for row in rows_of(load_cohort(data)).values()] == ["train", "train", "validation", "test"]
    lines.append('{"file_name": null, "glucose": "6,5", "edema": null, "text": null, "note": 3}\n')
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    last = rows_of(load_cohort(data))["6,5"]
    assert last["image"] is None and last["vitals"] == {"glucose": 6.5}
    assert last["labels"] == {"edema": None} and last["sections"] == [""]


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


def test_nih_in_neither_list_is_left_out(tmp_path: Path) -> None:
    root = layouts.nih(tmp_path)
    (root / "train_val_list.txt").write_text("\n".join(f"{i:08d}_000.png" for i in range(2, 18)))
    cohort = load_cohort(DataConfig(source="nih_cxr14", root=str(root)))
    assert len(cohort.dataset) == 21 and "00000001_000.png" not in rows_of(cohort)
    assert any("2 rows in none of the lists of the split left out" in text for text in cohort.warnings)


@pytest.mark.parametrize(("source", "make", "file"), [
    ("nih_cxr14", layouts.nih, "Data_Entry_2017.csv"), ("chexpert", layouts.chexpert, "valid.csv"),
    ("indiana", layouts.indiana, "indiana_projections.csv"),
    ("mimic_cxr", layouts.mimic, "cxr/mimic-cxr-2.0.0-split.csv"), ("mimic_cxr", layouts.mimic, "ed/triage.csv"),
])  # fmt: skip
def test_an_encoding_that_was_found_is_said(source: str, make: Callable, file: str, tmp_path: Path) -> None:
    root = make(tmp_path)
    table = root / file
    packed = table.with_name(f"{table.name}.gz")
    if packed.is_file():
        table.write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    elif not table.is_file():
        views = [f"{i}_IM-{i:04d}-1001.dcm.png,Frontal" for i in range(1, 9)]
        table.write_text("\n".join(["filename,projection", *views]) + "\n")
    header, *lines = table.read_text().splitlines()
    words = "Größe Übelkeit schräg Fußgänger Müdigkeit Röntgen früher Lähmung über für"
    rows = [f"{header},remark", *(f"{line},{words}" for line in lines)]
    table.write_bytes(("\n".join(rows) + "\n").encode("cp1252"))
    ed = MimicCxrConfig(ed=str(root / "ed"))
    place = str(root / "cxr") if source == "mimic_cxr" else str(root)
    said = load_cohort(DataConfig(source=source, root=place, mimic_cxr=ed)).warnings
    assert len([warning for warning in said if warning.startswith(f"{table}: ") and "1252" in warning]) == 1, said


def test_the_real_nih_table_is_read_and_split_in_seconds(tmp_path: Path) -> None:
    """All 112,120 rows; the images are empty files of the right names."""
    from tests.indiana import SHA256
    from vlm.weights import _fetch

    try:
        file = _fetch("torchxrayvision", "1.5.7", "torchxrayvision/data/Data_Entry_2017_v2020.csv.gz", SHA256, tmp_path)
    except UserError as error:
        pytest.skip(f"no package index: {error}")
    text = gzip.decompress(file.read_bytes())
    (tmp_path / "Data_Entry_2017_v2020.csv").write_bytes(text)
    (tmp_path / "images").mkdir()
    for line in text.decode().splitlines()[1:]:
        (tmp_path / "images" / line.split(",", 1)[0]).touch()
    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    # The kernel's own peak: that of getrusage begins with what the parent held.
    rows, newborn, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert (rows, newborn) == (112_120, 14)
    assert peak < 1 << 20, "KiB"


READ_ALL = r"""
import re, sys
from vlm.config import DataConfig
from vlm.data.ingest.sources import load_cohort
from vlm.data.storage import matrix
cohort = load_cohort(DataConfig(source="nih_cxr14", root=sys.argv[1]))
newborn = (matrix(cohort.dataset, "vitals", 2)[:, 0] == 0).sum()
print(len(cohort.dataset), newborn, re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


# --------------------------------------------------------------------------------- several sources


@pytest.fixture
def joined(tmp_path: Path) -> DataConfig:
    folder = TableConfig(patient="who", labels=["edema"], vitals=["glucose"], report=[SectionConfig("text")])
    sources = [
        SourceConfig("chexpert", str(layouts.chexpert(tmp_path / "c")), weight=3.0, labels={"Edema": "edema"},
                     table=TableConfig(labels=["Edema", "Fracture"])),
        SourceConfig("image_folder", str(layouts.image_folder(tmp_path / "f")), name="ward", table=folder),
    ]  # fmt: skip
    return DataConfig(sources=sources, split=SplitConfig(0.0, 0.0))


def test_what_a_source_does_not_have_is_unknown(joined: DataConfig) -> None:
    cohort = load_cohort(joined)
    rows = rows_of(cohort)
    ours = rows["ward/train/3.png"]
    assert cohort.labels == ("edema", "Fracture") and cohort.schema.names == ("age", "sex", "glucose")
    assert ours["labels"] == {"edema": 1, "Fracture": None} and ours["vitals"] == {
        "age": None,
        "sex": None,
        "glucose": 8,
    }
    theirs = rows["chexpert/train/patient00000/study1/view1_frontal.jpg"]
    assert theirs["labels"] == {"edema": 1, "Fracture": 0} and theirs["sections"] == [None]
    assert theirs["patient"] == "chexpert/patient00000" and theirs["weight"] == 3
    assert "\n  chexpert: train 11 (11 patients), validation 0 (0 patients), test 3" in cohort.describe()
    assert ours["source"] == "ward" and theirs["source"] == "chexpert"


def test_vitals_in_two_units_become_one(joined: DataConfig) -> None:
    ward = joined.sources[1]
    other = replace(ward, name="other", table=replace(ward.table, vitals=[VitalConfig("glucose", "mg/dL")]))
    own = rows_of(load_cohort(replace(joined, sources=[ward])))["ward/train/3.png"]["vitals"]["glucose"]
    both = load_cohort(replace(joined, sources=[ward, other]))
    assert both.schema.vitals[0].unit == "mmol/L" and rows_of(both)["ward/train/3.png"]["vitals"]["glucose"] == own == 8
    assert rows_of(both)["other/train/3.png"]["vitals"]["glucose"] == pytest.approx(8 / 18.016, abs=2e-3)
    turned = load_cohort(replace(joined, sources=[other, ward]))
    assert turned.schema.vitals[0].unit == "mg/dL"
    assert rows_of(turned)["ward/train/3.png"]["vitals"]["glucose"] == pytest.approx(8 * 18.016, rel=2e-3)
    assert any("glucose: the reference range of other, none mg/dL, is taken for ward too" in w for w in turned.warnings)


def test_categories_in_two_orders_become_one(tmp_path: Path) -> None:
    sources = []
    for name, words in (("a", ["no", "yes"]), ("b", ["yes", "no"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cases.csv").write_text("id,smoker\n1,yes\n2,no\n3,\n")
        table = TableConfig(id="id", image=None, vitals=[VitalConfig("smoker", categories=words)])
        sources.append(SourceConfig("table", str(tmp_path / name), name=name, table=table))
    rows = rows_of(load_cohort(DataConfig(sources=sources)))
    assert [rows[f"{s}/{i}"]["vitals"]["smoker"] for s in "ab" for i in (1, 2, 3)] == [1, 0, None] * 2


def test_every_source_keeps_the_needs_of_its_sections(tmp_path: Path) -> None:
    """A text that one source writes from the image must not be taught where there is none, whatever another says."""
    sources = []
    for name, section in (("a", SectionConfig("text", ["image"], "No image.")), ("b", SectionConfig("text", []))):
        (tmp_path / name).mkdir()
        layouts.picture(tmp_path / name / "1.png")
        (tmp_path / name / "cases.csv").write_text("id,image,text,more\n1,1.png,Clear.,x\n2,,Opacity.,y\n")
        table = TableConfig(id="id", report=[section, SectionConfig("more", [])])
        sources.append(SourceConfig("table", str(tmp_path / name), name=name, table=table))
    sources.append(replace(sources[1], name="c"))
    cohort = load_cohort(DataConfig(sources=sources, split=SplitConfig(0.0, 0.0)))
    dataset = CaseDataset(cohort.dataset, CaseSpec.fit(cohort, ImageSpec(32), 3), cohort.sections)
    reports = dict(zip(cohort.dataset["id"], dataset.reports, strict=True))
    assert reports == {"a/1": "Clear. x", "a/2": "No image. y", "b/1": "Clear. x", "b/2": "Opacity. y",
                       "c/1": "Clear. x", "c/2": "Opacity. y"}  # fmt: skip
    assert len(cohort.sections) == 4, "b and c agree and share theirs"


def test_weights_change_how_often_a_case_is_drawn_and_nothing_else(joined: DataConfig, tiny_model) -> None:
    from vlm.config import DropoutConfig
    from vlm.data.sampling import CaseSampler

    cohort = load_cohort(joined)
    rows = cohort.split("train")
    training = CaseDataset(rows, tiny_model.spec, cohort.sections, dropout=DropoutConfig())
    assert CaseDataset(rows, tiny_model.spec, cohort.sections).weights is None, "a test is never reweighted"
    sampler = CaseSampler(training, 4)
    heavy = np.array([name.startswith("chexpert") for name in rows["id"]])
    drawn = []
    for epoch in range(400):
        training.set_epoch(epoch)
        drawn += list(sampler)
    expected = 3 * heavy.sum() / (3 * heavy.sum() + (~heavy).sum())
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    assert abs(heavy[drawn].mean() - expected) < 4 * error
    training.set_epoch(7)
    assert list(sampler) == list(sampler) == drawn[7 * len(rows) : 8 * len(rows)], "by seed and epoch alone"


def test_a_resumed_run_on_weighted_sources_ends_bit_for_bit(tiny_config, joined: DataConfig) -> None:
    import torch

    from tests.training_jobs import trained
    from vlm.training.run_folder import RunFolder

    data = replace(tiny_config.data, sources=joined.sources, split=SplitConfig(0.2, 0.1))
    config = replace(tiny_config, data=data)
    whole = trained(config)
    moved = [replace(source, root=shutil.move(source.root, f"{source.root}-moved")) for source in joined.sources]
    config = replace(config, data=replace(data, sources=moved))
    folder = RunFolder(config)
    assert folder.check(config, folder.cases.read_text().strip(), resume=True), "folders may move"
    resumed = trained(config, str(sorted(RunFolder(config).checkpoints.glob("checkpoint-*"))[0]))
    for (name, a), b in zip(whole.model.trainable_parameters().items(), resumed.model.trainable_parameters().values(),
                            strict=True):  # fmt: skip
        assert torch.equal(a, b), name


DROPS = TableConfig(patient="who", labels=["edema"], vitals=[VitalConfig("glucose", "drops")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: [a, replace(b, name="chexpert")], "two are called chexpert"),
        (lambda a, b: [replace(a, labels={"Oedema": "edema"}), b], "chexpert: labels: Oedema is none of its"),
        (lambda a, b: [replace(a, labels={"Edema": "Fracture"}), b], "two of its labels get one name"),
        (lambda a, b: [b, replace(b, name="other", table=DROPS)], "glucose is mmol/L in ward and drops in other"),
        (lambda a, b: [a, replace(b, name="ward/1")], "ward/1: a name has no slash"),
    ],
)
def test_sources_that_do_not_fit_are_named(change: Callable, message: str, joined: DataConfig) -> None:
    with pytest.raises(UserError, match=message):
        load_cohort(replace(joined, sources=change(*joined.sources)))
