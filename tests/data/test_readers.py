"""Ready-made readers, against small collections in the documented layouts."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests import layouts
from tests.cells import rows_of
from vlm.config import ChexpertConfig, DataConfig, MimicCxrConfig, SectionConfig, TableConfig
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError


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


def test_vindr(tmp_path: Path) -> None:
    root = layouts.vindr(tmp_path)
    cohort = load_cohort(DataConfig(source="vindr_cxr", root=str(root)))
    rows = rows_of(cohort)
    assert set(rows) == {"aa", "cc", "dd", "ee", "ff"} and len(cohort.labels) == 27
    named = {name: {label for label, value in row["labels"].items() if value} for name, row in rows.items()}
    assert named == {"aa": {"Edema"}, "cc": {"ILD"}, "dd": set(), "ee": {"Other disease"}, "ff": {"Other disease"}}
    assert rows["dd"]["labels"]["COPD"] is None, "one of two radiologists: unknown"
    assert rows["aa"]["labels"]["ILD"] == 0 and rows["aa"]["patient"] == "aa"
    assert {name for name, row in rows.items() if row["split"] == "test"} == {"ee", "ff"}
    said = "\n".join(cohort.warnings)
    assert "names no patient" in said and "1 rows without their image file left out" in said
    assert "they differ on a label of 4 of 4 images" in said and "1 images have other than three" in said
    assert "where any sees it: ILD 0 of 2, Nodule/Mass 0 of 1, COPD 0 of 1" in said
    assert "image_labels_test.csv: a label is" not in said
    (root / "annotations" / "image_labels_train.csv").unlink()
    only = load_cohort(DataConfig(source="vindr_cxr", root=str(root), table=TableConfig(labels=["Other disease"])))
    assert only.labels == ("Other disease",) and set(rows_of(only)) == {"ee", "ff"}


def test_vindr_dicom_and_tables_beside_the_images(tmp_path: Path) -> None:
    root = layouts.vindr(tmp_path)
    for split in ("train", "test"):
        (root / "annotations" / f"image_labels_{split}.csv").rename(root / f"image_labels_{split}.csv")
    (root / "train" / "aa.png").rename(root / "train" / "aa.dicom")
    rows = rows_of(load_cohort(DataConfig(source="vindr_cxr", root=str(root))))
    assert rows["aa"]["image"].endswith("train/aa.dicom") and rows["ee"]["image"].endswith("test/ee.png")


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


@pytest.mark.slow
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
