"""Whole studies of public collections: laterals, and the studies before, with `data.studies`."""

import math
from pathlib import Path

import pytest

from tests import layouts
from vlm.config import DataConfig, MimicCxrConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError


def images_of(cohort: Cohort) -> dict[str, list[tuple[str, str, bool, float]]]:
    """Id → stem, view, prior and days of each image."""
    return {
        row["id"]: [(Path(x["path"]).stem, x["view"], x["prior"], round(x["days"], 2)) for x in row["images"]]
        for row in cohort.dataset
    }


def test_mimic_studies_have_all_views_and_the_study_before(tmp_path: Path) -> None:
    root = layouts.mimic(tmp_path)
    data = DataConfig(source="mimic_cxr", root=str(root / "cxr"), studies=True,
                      mimic_cxr=MimicCxrConfig(ed=str(root / "ed")))  # fmt: skip
    cohort = load_cohort(data)
    found = images_of(cohort)
    assert list(found) == ["50000001", "50000002", "50000003"]
    assert found["50000001"] == [("50000001-pa", "PA", False, 0), ("50000001-ap", "AP", False, 0),
                                 ("50000001-lateral", "lateral", False, 0)]  # fmt: skip
    assert [x[2:] for x in found["50000002"]] == [(False, 0)] * 3 + [(True, 147.15)] * 3, "6 May to 1 October"
    assert [x[2] for x in found["50000003"]] == [False] * 3, "another patient's study is none before"
    rows = {row["id"]: row for row in cohort.dataset}
    assert rows["50000002"]["prior_report"] == "Heart size is normal. No pneumonia."
    assert rows["50000001"]["vitals"][1] == 80 and rows["50000003"]["split"] == "test"


def test_chexpert_studies_are_ordered_by_number_without_days(tmp_path: Path) -> None:
    root = layouts.chexpert(tmp_path)
    text = (root / "train.csv").read_text()
    first = next(line for line in text.splitlines() if "patient00001" in line)
    more = [first.replace("study1/view1_frontal", f"study{n}/view{v}_{s}").replace("Frontal", s.title())
            for n, v, s in ((10, 1, "frontal"), (2, 1, "frontal"), (2, 2, "lateral"))]  # fmt: skip
    (root / "train.csv").write_text(text + "\n".join(more) + "\n")
    for line in more:
        layouts.picture(root / line.split(",")[0].partition("/")[2])
    found = images_of(load_cohort(DataConfig(source="chexpert", root=str(root), studies=True)))
    last = found["train/patient00001/study10"]
    assert [x[:3] for x in last] == [("view1_frontal", "AP", False), ("view1_frontal", "AP", True),
                                     ("view2_lateral", "lateral", True)]  # fmt: skip
    assert math.isnan(last[1][3]) and len(found["train/patient00003/study1"]) == 1


def test_indiana_studies_have_all_projections(tmp_path: Path) -> None:
    root = layouts.indiana(tmp_path)
    (root / "indiana_projections.csv").write_text(
        "uid,filename,projection\n1,1_IM-0001-1001.dcm.png,Frontal\n1,1_IM-0001-2001.dcm.png,Lateral\n"
    )
    found = images_of(load_cohort(DataConfig(source="indiana", root=str(root), studies=True)))
    assert [x[1] for x in found["1"]] == ["frontal", "lateral"] and [x[1] for x in found["2"]] == ["", ""]


def test_covid_rows_of_one_day_are_a_study_and_earlier_days_its_prior(tmp_path: Path) -> None:
    rows = ["patientid,offset,finding,filename,clinical_notes,modality,view,age"]
    for patient, day, name, note, view in (("1", "3", "a.png", "Opacity.", "PA"), ("1", "3", "al.png", "Opacity.", "L"),
                                           ("1", "8", "b.png", "Effusion.", "AP Supine"), ("2", "", "c.png", "", "PA"),
                                           ("2", "", "d.png", "", "PA")):  # fmt: skip
        rows.append(f"{patient},{day},COVID-19,{name},{note},X-ray,{view},60")
        layouts.picture(tmp_path / "images" / name)
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    data = DataConfig(source="covid_cxr", root=str(tmp_path), studies=True)
    assert images_of(load_cohort(data)) == {
        "a.png": [("a", "PA", False, 0), ("al", "lateral", False, 0)],
        "b.png": [("b", "ap supine", False, 0), ("a", "PA", True, 5), ("al", "lateral", True, 5)],
        "c.png": [("c", "PA", False, 0)],
        "d.png": [("d", "PA", False, 0)],
    }


def test_chexpert_plus(tmp_path: Path) -> None:
    data = DataConfig(source="chexpert_plus", root=str(layouts.chexpert_plus(tmp_path)), studies=True)
    cohort = load_cohort(data)
    rows = {row["id"]: row for row in cohort.dataset}
    second = images_of(cohort)["train/patient1/study2"]
    assert [x[:3] for x in second] == [("view1_frontal", "AP", False), ("view1_frontal", "PA", True),
                                       ("view1_lateral", "lateral", True)]  # fmt: skip
    assert rows["train/patient1/study2"]["prior_report"] == "Heart 1. Clear 1."
    assert rows["valid/patient2/study1"]["split"] == "test" and rows["valid/patient2/study1"]["context"] == "Cough."
    assert rows["train/patient1/study1"]["sections"] == ["Heart 1.", "Clear 1."]
    frontal = images_of(load_cohort(DataConfig(source="chexpert_plus", root=str(tmp_path))))
    assert all(len(images) == 1 for images in frontal.values()) and len(frontal) == 3


def test_padchest(tmp_path: Path) -> None:
    data = DataConfig(source="padchest", root=str(layouts.padchest(tmp_path)), studies=True)
    cohort = load_cohort(data)
    rows = {row["id"]: row for row in cohort.dataset}
    assert images_of(cohort) == {
        "s1": [("a", "PA", False, 0), ("al", "lateral", False, 0)],
        "s2": [("b", "ap horizontal", False, 0), ("a", "PA", True, 30), ("al", "lateral", True, 30)],
        "s3": [("c", "PA", False, 0)],
    }
    assert cohort.labels == ("cardiomegaly", "pleural effusion") and rows["s1"]["labels"] == [1, 1]
    assert rows["s2"]["labels"] == [0, 0] and all(map(math.isnan, rows["s3"]["labels"]))
    assert rows["s1"]["vitals"] == [64, 1] and rows["s2"]["prior_report"] == "informe s1"
    said = "; ".join(cohort.warnings)
    assert "1 rows of other than chest views" in said and "1 rows without their image file" in said
    frontal = load_cohort(DataConfig(source="padchest", root=str(tmp_path), table=TableConfig(labels=["cardiomegaly"])))
    assert all(len(images) == 1 for images in images_of(frontal).values()) and frontal.labels == ("cardiomegaly",)
    with pytest.raises(UserError, match=r"data\.table\.labels: edema is none of the labels"):
        load_cohort(DataConfig(source="padchest", root=str(tmp_path), table=TableConfig(labels=["edema"])))


def test_rexgradient(tmp_path: Path) -> None:
    data = DataConfig(source="rexgradient", root=str(layouts.rexgradient(tmp_path)), studies=True)
    cohort = load_cohort(data)
    rows = {row["id"]: row for row in cohort.dataset}
    assert images_of(cohort) == {
        "s1": [("a", "PA", False, 0), ("al", "lateral", False, 0)],
        "s2": [("b", "AP", False, 0), ("a", "PA", True, 31), ("al", "lateral", True, 31)],
        "s3": [("c", "PA", False, 0)],
    }
    assert rows["s1"]["vitals"] == [61, 1] and rows["s1"]["context"] == "Cough." and rows["s3"]["split"] == "test"
    assert rows["s2"]["prior_report"] == "Heart s1. Clear s1."
    first = images_of(load_cohort(DataConfig(source="rexgradient", root=str(tmp_path))))
    assert first == {"s1": [("a", "", False, 0)], "s2": [("b", "", False, 0)], "s3": [("c", "", False, 0)]}
    with pytest.raises(UserError, match="no file metadata/train_metadata"):
        load_cohort(DataConfig(source="rexgradient", root=str(tmp_path / "metadata")))
