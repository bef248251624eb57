"""Vocabularies of other fields and languages, and a user's own file."""

from pathlib import Path

import pandas as pd
import pytest

from vlm.errors import UserError
from vlm.evaluation.agreement import Agreement, why_undefined
from vlm.findings.labeller import Labeller
from vlm.findings.vocabulary import Vocabulary, shipped

UKRAINIAN = [
    ("У правому нижньому легеневому полі визначається інфільтрація.", "consolidation", "present", "right", "lower"),
    ("Інфільтративних змін у легенях не виявлено.", "consolidation", "absent", "", ""),
    ("Двобічна полісегментарна пневмонія.", "consolidation", "present", "left right", ""),
    ("Не можна виключити пневмонію зліва.", "consolidation", "uncertain", "left", ""),
    ("Підозра на пневмонію.", "consolidation", "uncertain", "", ""),
    ("Зліва у плевральній порожнині невеликий випіт.", "pleural_effusion", "present", "left", ""),
    ("Плевральний випіт відсутній.", "pleural_effusion", "absent", "", ""),
    ("Випоту немає.", "pleural_effusion", "absent", "", ""),
    ("Рідина в правій плевральній порожнині.", "pleural_effusion", "present", "right", ""),
    ("Синуси вільні.", "pleural_effusion", "absent", "", ""),
    ("Без ознак пневмотораксу.", "pneumothorax", "absent", "", ""),
    ("Правобічний пневмоторакс.", "pneumothorax", "present", "right", ""),
    ("Тінь серця розширена вліво.", "cardiomegaly", "present", "", ""),
    ("Серце не збільшене.", "cardiomegaly", "absent", "", ""),
    ("Серце у межах норми.", "cardiomegaly", "absent", "", ""),
    ("Кардіомегалія.", "cardiomegaly", "present", "", ""),
    ("Легеневі поля прозорі.", "opacity", "absent", "", ""),
    ("Легеневі поля прозорі.", "consolidation", "absent", "", ""),
    ("Затемнення у верхній частці лівої легені.", "opacity", "present", "left", "upper"),
    ("Вогнищеві тіні в прикореневих відділах справа.", "opacity", "present", "right", "middle"),
    ("Ателектаз нижньої частки зліва.", "atelectasis", "present", "left", "lower"),
    ("Набряку легень немає, але є випіт справа.", "pleural_effusion", "present", "right", ""),
    ("Набряку легень немає, але є випіт справа.", "pulmonary_edema", "absent", "", ""),
    ("Застійні зміни в малому колі кровообігу.", "pulmonary_edema", "present", "", ""),
    ("Консолідований перелом VI ребра справа.", "fracture", "present", "right", ""),
    ("Переломів ребер не виявлено.", "fracture", "absent", "", ""),
    ("Сколіоз грудного відділу хребта.", "scoliosis", "present", "", ""),
    ("Пневмосклероз. Емфізема легень.", "emphysema", "present", "", ""),
    ("Об'ємне утворення верхньої частки правої легені.", "nodule", "present", "right", "upper"),
    ("Новоутворень не визначається.", "nodule", "absent", "", ""),
    ("Пневмонія в анамнезі.", "consolidation", "present", "", ""),
    ("Поодинокі петрифікати в коренях.", "granuloma", "present", "", "middle"),
]
"""Report, finding, status, sides, zones; written by hand for this test."""


@pytest.mark.parametrize(("report", "finding", "status", "sides", "zones"), UKRAINIAN)
def test_ukrainian_chest_reports(report: str, finding: str, status: str, sides: str, zones: str) -> None:
    mention = Labeller.load("chest_uk").label(report)[finding]
    assert (mention.status, sorted(mention.sides), sorted(mention.zones)) == (status, sides.split(), zones.split())


def test_a_language_is_read_by_its_own_vocabulary() -> None:
    uk, en, de = (Labeller.load(name) for name in ("chest_uk", "chest_en", "ecg_de"))
    report = "Легеневі поля прозорі. Синуси вільні. Серце не збільшене."
    assert uk.is_read(report) and not en.is_read(report) and not de.is_read(report)
    assert not uk.is_read("The lungs are clear.") and not uk.is_read("Лёгкие без изменений, пневмонии нет.")
    found = Agreement.of(["Випіт зліва."], ["Випіт справа."], uk)
    assert found.true_positive.sum() == 1 and found.side_contradicted.sum() == 1
    assert why_undefined(["The lungs are clear."], uk).startswith(
        "the labeller reads Ukrainian chest reports and found"
    )


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        ("Sinusrhythmus. Normales EKG.", {"sinus_rhythm": "present", "normal_ecg": "present"}),
        ("Sinusrhythmus Linkstyp sonst normales EKG", {"left_axis": "present", "normal_ecg": "present"}),
        ("QRS(T) abnormal, inferiorer Infarkt möglich", {"infarction": "uncertain"}),
        ("septaler Infarkt nicht auszuschliessen", {"infarction": "uncertain"}),
        ("Kein Infarkt. Kein Hinweis auf Ischämie.", {"infarction": "absent", "myocardial_damage": "absent"}),
        ("Verdacht auf Linkshypertrophie", {"left_hypertrophy": "uncertain"}),
        ("Vorhofflimmern, überdrehter Linkstyp", {"atrial_fibrillation": "present", "left_axis": "present"}),
        ("unvollständiger Rechtsschenkelblock", {"right_bundle_branch_block": "present"}),
        ("A-V Block I", {"av_block": "present"}),
        ("Sinus Arrhythmie, ventrikuläre Extrasystole(n)", {"sinus_arrhythmia": "present", "extrasystoles": "present"}),
    ],
)
def test_german_ecg_reports(report: str, wanted: dict[str, str]) -> None:
    found = Labeller.load("ecg_de").label(report)
    assert {name: found[name].status for name in wanted} == wanted


def test_german_words_agree_with_the_codes_of_ecgs(ptbxl: Path) -> None:
    """Of records with a German report: those that it calls normal, and those that are coded normal."""
    cases = pd.read_csv(ptbxl / "cases.csv")
    labeller = Labeller.load("ecg_de")
    german = cases[cases["report_original"].str.contains(r"rhythmus|linkstyp|ekg", case=False, na=False)]
    said = german["report_original"].map(lambda text: "normal_ecg" in labeller.label(text))
    coded = german["NORM"] == 1
    assert len(german) > 100 and said.sum() > 60
    assert coded[said].mean() > 0.9, "precision"
    codes = german["scp_codes"].str.contains("AFIB")
    fibrillation = german["report_original"].map(lambda text: "atrial_fibrillation" in labeller.label(text))
    assert (codes == fibrillation).mean() > 0.97


DIAGNOSES = {"nv": "nevus", "mel": "melanoma", "bkl": "benign_keratosis", "bcc": "basal_cell_carcinoma",
             "akiec": "actinic_keratosis", "vasc": "vascular_lesion", "df": "dermatofibroma"}  # fmt: skip
SIZES = ("small", "medium_sized", "large", "very_large")


def test_dermoscopy_reports_are_read_whole(ham10000: Path) -> None:
    """Each report names one diagnosis, one size, one outline and one tone, and is read so."""
    cases = pd.read_csv(ham10000 / "cases.csv")
    labeller = Labeller.load("dermoscopy_en")
    for row in cases.drop_duplicates(["appearance", "impression"]).itertuples():
        found = labeller.label(f"{row.appearance} {row.impression}")
        present = {name for name, mention in found.items() if mention.status == "present"}
        assert present & set(DIAGNOSES.values()) == {DIAGNOSES[row.diagnosis]}
        (size,) = present & set(SIZES)
        assert size.replace("_", " ").replace("medium s", "medium-s") in row.appearance
        assert len(present & {"regular_outline", "slightly_irregular_outline", "irregular_outline"}) == 1
        assert len(present & {"darker", "somewhat_darker", "same_tone"}) == ("fills the picture" not in row.appearance)
        assert ("redder" in present) == ("redder" in row.appearance)
        assert ("further_examination" in present) == bool(row.malignant)
        assert (found["malignancy"].status == "absent") if not row.malignant else "malignancy" not in found


def test_dermoscopy_denies_and_doubts() -> None:
    labeller = Labeller.load("dermoscopy_en")
    found = labeller.label("Suspicious for melanoma. No pigment network. No further examination is needed.")
    assert found["melanoma"].status == "uncertain" and found["pigment_network"].status == "absent"
    assert found["further_examination"].status == "absent"
    assert labeller.label("Benign lesion on the left forearm.")["malignancy"].status == "absent"


OWN = """
title: Italian chest reports
findings:
  effusion: [versamento]
  pneumonia: ['polmonit\\w+']
pre_negation: ['\\bnon\\b', '\\bassenza di\\b']
sides: {left: ['\\bsinistr\\w+'], right: ['\\bdestr\\w+']}
"""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "italian.yaml"
    file.write_text(OWN)
    labeller = Labeller.load(str(file))
    found = labeller.label("Versamento a sinistra. Assenza di polmonite.")
    assert labeller.names == ("effusion", "pneumonia") and labeller.vocabulary.title == "Italian chest reports"
    assert found["effusion"].sides == {"left"} and found["pneumonia"].status == "absent"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("findings: [a]", "findings: maps names to lists of patterns"),
        ("title: nothing", "a vocabulary maps `findings` to names with their patterns"),
        ("findings: {a: [b]}\npre_negatoin: [no]", "unknown key 'pre_negatoin'; did you mean pre_negation?"),
        ("findings: {a: ['(']}", r"findings.a: '(' is no regular expression: missing ), unterminated subpattern"),
        ("findings: {a: b}", "findings.a: a list of patterns, each a text"),
        ("findings: {a: ['x*']}", "findings.a: 'x*' matches nothing at all, so it stands everywhere"),
        ("findings: {a: [b]}\nnormal: {c: [d]}", "normal: 'c' is none of the findings"),
        ("findings: {a: [b", "no YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_key(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Vocabulary.load(str(file))
    assert str(error.value).startswith(f"{file}: {says}") and "\n" not in str(error.value)


def test_an_unknown_name_is_told_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.findings: no vocabulary is named 'chest_eng'; did you mean chest_en\?"):
        Vocabulary.load("chest_eng")
    with pytest.raises(UserError, match=r"cannot read the vocabulary: No such file"):
        Vocabulary.load(str(tmp_path / "none.yaml"))
    assert shipped() == ["chest_en", "chest_uk", "dermoscopy_en", "ecg_de"]
