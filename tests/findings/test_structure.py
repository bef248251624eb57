"""The table of findings of a draft: its rows, its JSON and the schema of it, its codes and its place on the page."""

import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from vlm.app.view import percent
from vlm.errors import UserError
from vlm.findings.labeller import Labeller, chest
from vlm.findings.structure import stated_findings
from vlm.findings.vocabulary import Vocabulary, shipped
from vlm.report import FORMAT, ReadImage, Report, StatedFinding
from vlm.resources import render

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = json.loads(files("vlm").joinpath("draft-1.schema.json").read_text(encoding="utf-8"))
DRAFT = (
    "Small left pleural effusion and moderate cardiomegaly. No pneumothorax.\n"
    "1. Possible nodule in the right upper lobe, which is new. 2. Mass in both lower lobes."
)


def rows(text: str, name: str = "chest_en", **options: Any) -> list[StatedFinding]:
    given = {"probabilities": {}, "label_findings": {}, **options}
    return list(stated_findings([("", text)], Labeller.load(name), **given))


def test_a_row_holds_status_place_degree_sentence_and_code() -> None:
    found = {row.finding if row.sentence < 4 else "mass": row for row in rows(DRAFT)}
    effusion, heart, air, nodule, mass = (
        found[name] for name in ("pleural_effusion", "cardiomegaly", "pneumothorax", "nodule", "mass")
    )
    assert (effusion.status, effusion.sides, effusion.severities) == ("present", ("left",), ("small",))
    assert (heart.status, heart.sides, heart.severities, heart.sentence) == ("present", (), ("moderate",), 1)
    assert (air.status, air.sentence, air.text) == ("absent", 2, "No pneumothorax")
    assert (nodule.status, nodule.sides, nodule.sites, nodule.sentence) == ("uncertain", ("right",), ("upper",), 3)
    assert (mass.sides, mass.sites, mass.sentence) == (("left", "right"), ("lower",), 4), "1 and 2 are no sentences"
    assert [row.snomed for row in (effusion, heart, air, nodule, mass)] == [
        "60046008", "8186001", "36118008", "427359005", None]  # fmt: skip
    assert effusion.text == "Small left pleural effusion and moderate cardiomegaly", "the letters of the draft"


def test_a_code_stands_for_its_own_words_alone() -> None:
    codes = {text: rows(text)[0].snomed for text in (
        "Pneumonia.", "Consolidation.", "Empyema.", "Borderline heart size.", "Heart size is normal.", "Rib fracture.",
        "Hydropneumothorax.")}  # fmt: skip
    assert codes == {"Pneumonia.": None, "Consolidation.": "95436008", "Empyema.": None, "Borderline heart size.": None,
                     "Heart size is normal.": "8186001", "Rib fracture.": "125605004",
                     "Hydropneumothorax.": None}  # fmt: skip


def test_the_probability_is_that_of_the_one_label_that_stands_for_the_finding() -> None:
    text, odds = "No opacity. Pleural effusion.", {"pathology": 0.7, "pleural_effusion": 0.2, "other": 0.5}
    shadow, effusion = rows(text, probabilities=odds, label_findings={"pathology": "opacity"})
    assert (shadow.label, shadow.probability, shadow.status) == ("pathology", 0.7, "absent")
    assert (effusion.label, effusion.probability) == ("pleural_effusion", 0.2)
    two = rows(text, probabilities=odds, label_findings={"pathology": "opacity", "other": "opacity"})[0]
    assert two.label is None and two.probability is None, "which of the two it would be nobody knows"


def test_sections_are_named_and_sentences_counted_through() -> None:
    parts = [("", "Effusion."), ("findings", "Heart size is normal. Nodule."), ("impression", "Nodule. Nodule.")]
    found = stated_findings(parts, chest(), {}, {})
    assert [(row.section, row.sentence) for row in found] == [
        (None, 1), ("findings", 2), ("findings", 3), ("impression", 4), ("impression", 5)]  # fmt: skip
    assert len(rows("A nodule and a nodule.")) == 1, "what a sentence says twice stands there once"


@pytest.mark.parametrize(
    ("name", "text", "finding", "severities"),
    [
        ("chest_en", "Small, left-sided pleural effusion.", "pleural_effusion", ("small",)),
        ("chest_en", "The heart is mildly enlarged.", "cardiomegaly", ("mild",)),
        ("chest_en", "Pleural effusion, mild degenerative change of the spine.", "pleural_effusion", ()),
        ("chest_en", "Mild degenerative change and pleural effusion.", "pleural_effusion", ()),
        ("chest_en", "Effusion is moderate to large.", "pleural_effusion", ("moderate", "large")),
        ("chest_en", "Large lung volumes.", "hyperinflation", ()),
        ("chest_en", "No large effusion.", "pleural_effusion", ("large",)),
        ("chest_uk", "Зліва у плевральній порожнині невеликий випіт.", "pleural_effusion", ("small",)),
        ("chest_uk", "Значний випіт справа.", "pleural_effusion", ("severe",)),
        ("chest_uk", "Незначна кількість випоту.", "pleural_effusion", ("mild",)),
        ("ecg_de", "Ausgeprägte ST-Senkung.", "st_change", ("severe",)),
        ("ecg_de", "Leichte T-Abflachung.", "t_change", ("mild",)),
        ("ecg_de", "Mäßige Linkshypertrophie.", "left_hypertrophy", ("moderate",)),
        ("dermoscopy_en", "Marked asymmetry.", "asymmetry", ("severe",)),
    ],
)
def test_degrees_and_sizes(name: str, text: str, finding: str, severities: tuple[str, ...]) -> None:
    assert {row.finding: row.severities for row in rows(text, name)}[finding] == severities


def test_every_vocabulary_has_severities_and_codes_whose_check_digit_is_right() -> None:
    codes = []
    for vocabulary in map(Vocabulary.load, shipped()):
        assert {"mild", "moderate", "severe"} <= vocabulary.named["severities"].keys()
        codes += [code for named in vocabulary.codes["snomed"].values() for code in named]
    assert set(codes) == {"60046008", "36118008", "8186001", "95436008", "427359005", "125605004"}
    assert all(verhoeff(code) == 0 and code[-3:-1] == "00" for code in codes), "of a concept, in the core"
    assert verhoeff("60046009") != 0


def test_a_radlex_code_stands_for_its_own_words_alone() -> None:
    codes = {text: rows(text)[0].radlex for text in (
        "Small effusion.", "Empyema.", "Pneumothorax.", "Hydropneumothorax.", "Basal atelectasis.", "Volume loss.",
        "Consolidation.", "Pneumonia.", "Lungs are clear.", "Shadow.", "Edema.", "Congestion.", "Nodules.", "Mass.",
        "Granuloma.", "Granulomatous disease.", "Rib fracture.", "Scarring.", "Fibrosis.", "Cardiomegaly.",
        "Subcutaneous emphysema.")}  # fmt: skip
    assert {text: code for text, code in codes.items() if code} == {
        "Small effusion.": "RID34539", "Pneumothorax.": "RID5352", "Basal atelectasis.": "RID28493",
        "Consolidation.": "RID43255", "Lungs are clear.": "RID28530", "Edema.": "RID4866", "Nodules.": "RID50149",
        "Granuloma.": "RID3953", "Rib fracture.": "RID4650", "Scarring.": "RID3829"}  # fmt: skip
    ukrainian = rows("Невеликий випіт. Перелом ребра. Емпієма.", "chest_uk")
    assert [(row.finding, row.radlex) for row in ukrainian] == [
        ("pleural_effusion", "RID34539"), ("fracture", "RID4650"), ("pleural_effusion", None)]  # fmt: skip


def test_a_radlex_code_means_one_finding_in_every_vocabulary() -> None:
    pairs = {(code, finding) for vocabulary in map(Vocabulary.load, shipped())
             for finding, named in vocabulary.codes["radlex"].items() for code in named}  # fmt: skip
    assert len(pairs) == len({code for code, _ in pairs}) == len({finding for _, finding in pairs}) == 10


def verhoeff(number: str) -> int:
    """Check sum of a SNOMED CT identifier, 0 if it is right: the Verhoeff scheme, over the dihedral group of ten."""

    def times(a: int, b: int) -> int:
        turned = (a % 5 + (b if a < 5 else -b)) % 5
        return turned + 5 * ((a >= 5) != (b >= 5))

    permuted, total = list(range(10)), 0
    for digit in map(int, reversed(number)):
        total = times(total, permuted[digit])
        permuted = [permuted[place] for place in (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)]
    return total


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("snomed: [a]", "snomed: maps findings to codes"),
        ("snomed: {b: '60046008'}", "snomed: 'b' is none of the findings"),
        ("snomed: {a: 60}", "snomed.a: '60' is no code; it has 6 to 18 digits"),
        ("radlex: {a: 34539}", "radlex.a: '34539' is no code; it is RID and 1 to 6 digits"),
        ("radlex: {a: RID34539x}", "radlex.a: 'RID34539x' is no code"),
        ("radlex: {c: RID34539}", "radlex: 'c' is none of the findings"),
        ("snomed: {a: {'60046008': b}}", "snomed.a.60046008: a list of patterns, each a text"),
        ("severities: {mild: [x*]}", "severities.mild: 'x*' matches nothing at all"),
    ],
)
def test_a_wrong_code_or_severity_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    (file := tmp_path / "own.yaml").write_text(f"findings: {{a: [b]}}\n{text}")
    with pytest.raises(UserError) as error:
        Vocabulary.load(str(file))
    assert str(error.value).startswith(f"{file}: {says}") and "\n" not in str(error.value)


def test_ones_own_vocabulary_has_its_own_codes_and_degrees(tmp_path: Path) -> None:
    (file := tmp_path / "own.yaml").write_text(
        "findings: {effusion: [versamento], fracture: [frattura]}\nsnomed: {effusion: 60046008}\n"
        "radlex: {fracture: RID4650}\n"
        "severities: {small: ['\\bpiccolo\\b']}")  # fmt: skip
    effusion, fracture = rows("Piccolo versamento. Frattura.", str(file))
    assert (effusion.snomed, effusion.severities, fracture.snomed) == ("60046008", ("small",), None)
    assert (effusion.radlex, fracture.radlex) == (None, "RID4650")
    assert Labeller.of_adapter("").mentions(DRAFT) == [] and Labeller.of_adapter("chest_en") == chest()


# ------------------------------------------------------------------------------------------------ JSON, the page


def report(text: str = DRAFT) -> Report:
    found = stated_findings([("findings", text)], chest(), {"nodule": 0.25}, {})
    images = (ReadImage("PA"), ReadImage("", True, 30.0))
    return Report(text, {"nodule": 0.25}, {"glucose": 8.7, "sex": "F"}, ("not given: age",),
                  sections={"findings": text}, images=images, findings=found)  # fmt: skip


def test_the_json_is_that_of_the_published_schema() -> None:
    assert json.loads((DOCS / "draft-1.schema.json").read_text(encoding="utf-8")) == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    said = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert said == report().to_dict() and len(said["findings"]) == 5
    for values in (said, {**said, "row": 2, "id": "a"}, Report("", {}).to_dict()):
        jsonschema.validate(values, SCHEMA)
    assert SCHEMA["properties"].keys() - {"row", "id"} >= said.keys() == set(SCHEMA["required"])
    row = SCHEMA["$defs"]["finding"]
    assert row["properties"].keys() == set(row["required"]) == {field.name for field in fields(StatedFinding)}
    assert SCHEMA["properties"]["format"]["const"] == FORMAT and SCHEMA["$id"].endswith(f":{FORMAT}")


@pytest.mark.parametrize(
    "change",
    [{"status": "maybe"}, {"probability": 1.5}, {"snomed": "6004"}, {"radlex": "5352"}, {"sides": "left"},
     {"sentence": 0}, {"text": None}],
)  # fmt: skip
def test_the_schema_refuses_other_values(change: dict[str, Any]) -> None:
    said = report().to_dict()
    said["findings"][0] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(said, SCHEMA)


def test_the_page_has_the_table_and_escapes_it() -> None:
    shown = report("Small left effusion, <b. Nodule.")
    page = render("vlm.app", "result.html.j2", state="done", report=shown, parts=[], files=[], text="", meaning="",
                  read="", filed="", percent=percent)  # fmt: skip
    assert '<th scope="row">pleural effusion</th><td>present</td>' in page and "<td>small</td>" in page
    assert 'title="Small left effusion, &lt;b"' in page and "<td>25.0 %</td>" in page
    assert "vlm-findings" not in render("vlm.app", "result.html.j2", state="done", report=Report("", {}), parts=[],
                                        files=[], text="", meaning="", read="", filed="", percent=percent)  # fmt: skip
