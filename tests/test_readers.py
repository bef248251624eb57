"""Ready-made readers, against small collections in the documented layouts."""

import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import layouts
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
from vlm.data.cohort import Cohort
from vlm.data.sources import load_cohort
from vlm.errors import UserError


def rows_of(cohort: Cohort) -> dict[str, dict]:
    """Id → row, with labels and vitals by name and NaN as None."""
    plain = lambda x: None if x != x else round(x, 3)  # noqa: E731
    return {
        row["id"]: {
            **row,
            "labels": {n: plain(x) for n, x in zip(cohort.labels, row["labels"], strict=True)},
            "vitals": {n: plain(x) for n, x in zip(cohort.schema.names, row["vitals"], strict=True)},
            "image": row["image"] and row["image"]["path"],
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
    assert rows["00000005_000.png"]["vitals"]["age"] is None, "414 years are nobody's age"
    assert all((row["split"] == "test") == (int(row["patient"]) >= 18) for row in rows.values())
    assert not any(rows["00000001_000.png"]["labels"].values())


def test_chexpert(tmp_path: Path) -> None:
    data = DataConfig(source="chexpert", root=str(layouts.chexpert(tmp_path)))
    cohort = load_cohort(data)
    rows = rows_of(cohort)
    edema = [rows[f"train/patient{i:05d}/study1/view1_frontal.jpg"]["labels"]["Edema"] for i in (0, 1, 2, 7)]
    assert edema == [1, None, 0, 0] and len(rows) == 14
    assert any("2 rows of lateral views left out" in text for text in cohort.warnings)
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


def test_image_folder_with_a_table_and_with_class_folders(tmp_path: Path) -> None:
    table = TableConfig(patient="who", labels=["edema"], vitals=["glucose"], report=[SectionConfig("text")])
    rows = rows_of(
        load_cohort(DataConfig(source="image_folder", root=str(layouts.image_folder(tmp_path / "a")), table=table))
    )
    assert len(rows) == 8 and rows["test/1.png"]["split"] == "test" and rows["train/3.png"]["labels"] == {"edema": 1}
    assert rows["train/3.png"]["vitals"] == {"glucose": 8} and rows["train/3.png"]["sections"] == ["Clear lungs."]
    for index, name in enumerate(("covid", "normal", "covid")):
        layouts.picture(tmp_path / "b" / name / f"{index}.png")
    found = rows_of(load_cohort(DataConfig(source="image_folder", root=str(tmp_path / "b"))))
    assert found["covid/0.png"]["labels"] == {"covid": 1, "normal": 0} and len(found) == 3


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
    (layouts.indiana(tmp_path / "iu") / "ecgen-radiology" / "1.xml").write_text("<eCitation>")
    with pytest.raises(UserError, match=r"1\.xml: no readable XML report"):
        load_cohort(DataConfig(source="indiana", root=str(tmp_path / "iu")))
    with pytest.raises(UserError, match=r"data\.table\.labels: Oedema is none of Enlarged"):
        data = DataConfig(source="chexpert", root=str(layouts.chexpert(tmp_path / "c")))
        load_cohort(replace(data, table=TableConfig(labels=["Oedema"])))


def test_the_real_nih_table_is_read_and_split_in_seconds(tmp_path: Path) -> None:
    """All 112,120 rows; the images are empty files of the right names."""
    import gzip

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
    start = time.perf_counter()
    cohort = load_cohort(DataConfig(source="nih_cxr14", root=str(tmp_path)))
    print(f"{time.perf_counter() - start:.1f} s, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")
    assert len(cohort.dataset) == 112_120


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
    assert "cases by source: chexpert 14, ward 8" in cohort.warnings[0]


def test_weights_change_how_often_a_case_is_drawn_and_nothing_else(joined: DataConfig, tiny_model) -> None:
    from vlm.config import DropoutConfig
    from vlm.data.examples import CaseDataset
    from vlm.training.trainer import WeightedSampler

    cohort = load_cohort(joined)
    rows = cohort.split("train")
    training = CaseDataset(rows, tiny_model.spec, cohort.sections, dropout=DropoutConfig())
    assert CaseDataset(rows, tiny_model.spec, cohort.sections).weights is None, "a test is never reweighted"
    sampler = WeightedSampler(training, training.weights)
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

    from tests.test_training import trained
    from vlm.run_folder import RunFolder

    data = replace(tiny_config.data, sources=joined.sources, split=SplitConfig(0.2, 0.1))
    config = replace(tiny_config, data=data)
    whole = trained(config)
    resumed = trained(config, str(sorted(RunFolder(config).checkpoints.glob("checkpoint-*"))[0]))
    for (name, a), b in zip(whole.model.trainable_parameters().items(), resumed.model.trainable_parameters().values(),
                            strict=True):  # fmt: skip
        assert torch.equal(a, b), name


MG_DL = TableConfig(patient="who", labels=["edema"], vitals=[VitalConfig("glucose", "mg/dL")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: [a, replace(b, name="chexpert")], "two are called chexpert"),
        (lambda a, b: [replace(a, labels={"Oedema": "edema"}), b], "chexpert: labels: Oedema is none of its"),
        (lambda a, b: [replace(a, labels={"Edema": "Fracture"}), b], "two of its labels get one name"),
        (lambda a, b: [b, replace(b, name="other", table=MG_DL)], "glucose is mmol/L in ward and mg/dL in other"),
    ],
)
def test_sources_that_do_not_fit_are_named(change: Callable, message: str, joined: DataConfig) -> None:
    with pytest.raises(UserError, match=message):
        load_cohort(replace(joined, sources=change(*joined.sources)))
