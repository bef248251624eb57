"""The COVID-19 collection: its layout, its labels, and the sentences that speak of the image."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from vlm.config import CovidCxrConfig, DataConfig, SplitConfig
from vlm.data.ingest.readers.covid_cxr import image_sentences, load_covid_cxr
from vlm.errors import UserError

OLD = "patientid,offset,sex,age,finding,view,modality,folder,filename,clinical_notes,temperature,pO2 saturation"
NEW = "patientid,offset,sex,age,finding,view,modality,folder,filename,clinical_notes,temperature,pO2_saturation"


@pytest.fixture
def collection(tmp_path: Path):
    """A function that writes a small collection under a given header."""

    def write(header: str) -> DataConfig:
        rows = [
            '1,3,M,54,COVID-19,PA,X-ray,images,a.jpg,"Fever. Patchy opacities in both lungs.",38.1,91',
            "1,,F,,Pneumonia/Viral/COVID-19,AP,X-ray,images,b.jpg,,,175",
            "2,,F,40,todo,AP Supine,X-ray,images,c.jpg,Cough,,",
            "3,,M,70,No Finding,PA,X-ray,images,d.jpg,Lungs are clear.,,97",
            "4,,M,70,COVID-19,Axial,CT,volumes,e.nii,CT,,",
            "5,,M,70,COVID-19,PA,X-ray,images,lost.jpg,,,",
            "6,,M,70,COVID-19,L,X-ray,images,side.jpg,,,",
        ]
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in "abcd":
            cv2.imwrite(str(tmp_path / "images" / f"{name}.jpg"), np.full((20, 20), 99, np.uint8))
        cv2.imwrite(str(tmp_path / "images" / "side.jpg"), np.full((20, 20), 99, np.uint8))
        (tmp_path / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")
        return DataConfig(source="covid_cxr", root=str(tmp_path))

    return write


@pytest.mark.parametrize("header", [OLD, NEW])
def test_both_headers_give_the_same_cases(header: str, collection) -> None:
    cohort = load_covid_cxr(collection(header))
    assert cohort.dataset["id"] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    np.testing.assert_equal(np.array(cohort.dataset["labels"])[:, 0], [1, 1, np.nan, 0])
    first = dict(zip(cohort.schema.names, cohort.dataset[0]["vitals"], strict=True))
    assert first["age"] == 54 and first["sex"] == 1 and first["days_since_onset"] == 3
    assert first["temperature"] == pytest.approx(38.1) and first["spo2"] == 91
    assert np.isnan(cohort.dataset[1]["vitals"][cohort.schema.position("spo2")])  # 175 % is impossible
    assert [texts[0] for texts in cohort.dataset["sections"]] == [
        "Patchy opacities in both lungs.",
        "",
        "",
        "Lungs are clear.",
    ]
    warnings = " ".join(cohort.warnings)
    assert (
        "2 rows of another modality" in warnings
        and "1 rows without their image" in warnings
        and "spo2: 1 values" in warnings
    )


def test_the_whole_note_is_an_option(collection) -> None:
    data = DataConfig(source="covid_cxr", root=collection(NEW).root, covid_cxr=CovidCxrConfig(report="whole_note"))
    assert load_covid_cxr(data).dataset[0]["sections"] == ["Fever. Patchy opacities in both lungs."]


@pytest.mark.parametrize(
    ("note", "kept"),
    [
        ("Fever for 3 days. Consolidation in the left lower lobe.", "Consolidation in the left lower lobe."),
        ("Ground-glass opacities were seen on high-resolution computed tomography.", ""),
        (
            "The chest radiograph shows opacities, as the CT does.",
            "The chest radiograph shows opacities, as the CT does.",
        ),
        (
            "Presentation: Known opacity. Imaging Notes: No effusion.. Discussion: Typical consolidation.",
            "No effusion.",
        ),
        ("Presentation: Cough. Minor bilateral airspace opacification.", "Minor bilateral airspace opacification."),
        ("", ""),
    ],
)
def test_sentences_about_the_image_are_kept(note: str, kept: str) -> None:
    assert image_sentences(note) == kept


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder; set data\.root"):
        load_covid_cxr(DataConfig(root=str(tmp_path / "none")))
    with pytest.raises(UserError, match=r"no file metadata\.csv"):
        load_covid_cxr(DataConfig(root=str(tmp_path)))
    (tmp_path / "metadata.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"no column patientid; is this the collection's own table"):
        load_covid_cxr(DataConfig(root=str(tmp_path)))


def test_the_real_collection(covid_root: Path) -> None:
    """Counts of the licensed part; its mistakes are reported, not hidden."""
    cohort = load_covid_cxr(DataConfig(source="covid_cxr", root=str(covid_root), split=SplitConfig(0.15, 0.3)))
    labels = np.array(cohort.dataset["labels"])[:, 0]
    assert len(cohort.dataset) >= 264 and len(set(cohort.dataset["patient"])) >= 148
    assert np.isnan(labels).sum() >= 60 and (labels == 1).sum() >= 140 and (labels == 0).sum() >= 50
    assert sum(bool(texts[0]) for texts in cohort.dataset["sections"]) >= 170
    assert any("spo2" in warning and "175" in warning for warning in cohort.warnings)
    split = {}
    for patient, name in zip(cohort.dataset["patient"], cohort.dataset["split"], strict=True):
        assert split.setdefault(patient, name) == name
