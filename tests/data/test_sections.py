"""Named sections: headings in the target, and a draft split at them, whatever a model writes."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.conftest import read_json, tiny_model_config
from tests.untrusted_adapters import refusal
from vlm.adapter import load, read_config, save
from vlm.adapter.card import card
from vlm.atomic import write_manifest
from vlm.config import Config, DataConfig, SectionConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.finding_labels import read_findings
from vlm.data.ingest.phantom_words import TABLE, read_facts
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.pack import PackOptions, pack
from vlm.data.sections import heading, section_name, section_names, split_sections, strip_headings
from vlm.data.shown_evidence import compose_report
from vlm.errors import UserError
from vlm.evaluation.evaluate import evaluate
from vlm.findings.labeller import chest
from vlm.inference.engine import Draft, Engine
from vlm.inference.open_engine import use_vocabulary
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.lengths import check_lengths
from vlm.training.run import build_model

SECTIONS = [SectionConfig("exam_findings", ["image"], "No image.", "findings"), SectionConfig("IMPRESSION", [])]
NAMES = section_names(SECTIONS)


@pytest.fixture
def headed(table_root: Path, tmp_path: Path) -> DataConfig:
    """The tests' table with an impression and an indication, its reports under headings."""
    from tests.conftest import table_config

    frame = pd.read_csv(table_root / "cases.csv", dtype=str, keep_default_na=False)
    frame["impression"] = ["Pneumonia." if number % 3 else "" for number in range(len(frame))]
    frame["indication"] = ["Cough." if number % 3 else "" for number in range(len(frame))]
    frame.to_csv(tmp_path / "cases.csv", index=False)
    (tmp_path / "images").symlink_to(table_root / "images")
    data = table_config(tmp_path)
    sections = [*data.table.report, SectionConfig("impression", [])]
    return replace(data, table=replace(data.table, report=sections, context="indication"), section_headings=True)


@pytest.fixture
def model(headed: DataConfig, tiny_llm: str) -> ClinicalVLM:
    config = Config(data=headed, model=tiny_model_config(tiny_llm))
    return build_model(config, load_cohort(headed), torch.device("cpu"), torch.float32)


# --------------------------------------------------------------------------------------- headings and parts


def test_a_section_is_named_as_it_says_or_as_its_column() -> None:
    assert NAMES == ("findings", "impression") and [heading(name) for name in NAMES] == ["Findings:", "Impression:"]
    assert [section_name(SectionConfig(column)) for column in ("exam_findings", "Заключение", "***", " A-b ")] == [
        "exam findings", "заключение", "***", "a b"]  # fmt: skip


@pytest.mark.parametrize("name", ["a:b", "two  spaces", "x" * 1000, "line\nbreak", "<b>bold</b>", "\u202ereversed"])
def test_a_name_that_makes_no_heading_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"data.table.report: name: ") as error:
        section_names([SectionConfig("a", name=name)])
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_two_sections_of_one_name_are_refused(headed: DataConfig) -> None:
    twice = [SectionConfig("findings"), SectionConfig("impression", name="findings")]
    data = replace(headed, table=replace(headed.table, report=twice))
    with pytest.raises(UserError, match="two sections are named 'findings'; set their `name`"):
        load_cohort(data)
    load_cohort(replace(data, section_headings=False))  # without headings names do not matter
    with pytest.raises(UserError, match="two sections have one name"):
        section_names([SectionConfig("a", name="findings"), SectionConfig("b", name="Findings")])


def test_a_target_is_composed_with_headings_and_split_again() -> None:
    texts = ["Heart normal. Lungs clear", "Normal."]
    target = compose_report(texts, SECTIONS, {"image"}, headings=True)
    assert target == "Findings: Heart normal. Lungs clear Impression: Normal."
    assert split_sections(target, NAMES) == {"findings": "Heart normal. Lungs clear", "impression": "Normal."}
    assert strip_headings(target, NAMES) == " ".join(texts) == compose_report(texts, SECTIONS, {"image"})
    assert compose_report(texts, SECTIONS, set(), headings=True) == "Findings: No image. Impression: Normal."
    assert compose_report(["", "Normal."], SECTIONS, {"image"}, headings=True) == "Impression: Normal."
    assert compose_report([None, None], SECTIONS, {"image"}, headings=True) == ""
    brought = ["FINDINGS:  Lungs clear.", "impression:Normal."]
    assert compose_report(brought, SECTIONS, {"image"}, headings=True) == "Findings: Lungs clear. Impression: Normal."


@pytest.mark.parametrize(
    ("draft", "sections"),
    [
        ("", {}),
        ("No opacity.", {}),
        ("No opacity. Impression: Normal.", {"impression": "Normal."}),
        ("Impression: A. Findings: B. Impression: C.", {"impression": "A. C.", "findings": "B."}),
        ("Findings: Impression:", {}),
        ("Findings:\nA.\n\nImpression:\n- B\n- C", {"findings": "A.", "impression": "- B\n- C"}),
        ("findings: A. IMPRESSION: B.", {}),
        ("MyFindings: A. Findings:B.", {}),
        ("Findings: see Impression: x", {"findings": "see", "impression": "x"}),
    ],
)
def test_a_draft_is_split_as_far_as_its_headings_go(draft: str, sections: dict[str, str]) -> None:
    assert split_sections(draft, NAMES) == sections
    assert split_sections(draft, ()) == {} and strip_headings(draft, ()) == draft


def test_facts_and_findings_are_read_without_and_with_headings() -> None:
    names = section_names(TABLE.report)
    texts = ["Dense shadow in the left lower zone.", "Glucose is elevated.", "Blood pressure is low."]
    everything = {"image", "vitals", "glucose", "systolic", "diastolic"}
    plain, headings = (compose_report(texts, TABLE.report, everything, headings=on) for on in (False, True))
    assert headings.startswith("Image report: Dense shadow")
    assert read_facts(strip_headings(headings, names)) == read_facts(plain)
    with_headings = "Findings: No pleural effusion. Impression: Left lower lobe pneumonia. Heart is enlarged."
    assert chest().label(with_headings) == chest().label(strip_headings(with_headings, NAMES))
    assert read_findings(with_headings, [("", "pleural_effusion")]) == [0.0]


# ---------------------------------------------------------------------------------- training and adapters


def test_examples_have_headings_and_references_none(headed: DataConfig) -> None:
    cohort = load_cohort(headed)
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3, headings=True)
    assert spec.sections == ("findings", "impression") and spec.context is True
    dataset = CaseDataset(cohort.dataset, spec, cohort.sections)
    row = list(cohort.dataset["id"]).index("c1")
    assert dataset[row]["report"] == "Findings: Patchy opacities in the left lower zone. Impression: Pneumonia."
    assert dataset.report(row) == "Patchy opacities in the left lower zone. Pneumonia."
    without = replace(dataset, spec=CaseSpec.fit(cohort, ImageSpec(32), 3))
    assert without.spec.sections == () and without[row]["report"] == dataset.report(row)


def test_a_long_target_is_measured_with_its_headings(model: ClinicalVLM, headed: DataConfig) -> None:
    cohort = load_cohort(headed)
    dataset = CaseDataset(cohort.dataset, model.spec, cohort.sections)
    longest = max(len(model.prompt.report_ids(dataset.report(index, True))) for index in range(len(dataset)))
    context = max(row["context"] for row in cohort.dataset)
    around = sum(map(len, model.prompt.ids(context))) + model.prompt.evidence_tokens
    model.prompt.context_length = around + longest
    assert check_lengths(model.prompt, {"train": dataset}, 1) == []
    model.prompt.context_length -= 1
    assert "train reports are cut where they are learned" in check_lengths(model.prompt, {"train": dataset}, 1)[0]


def test_an_adapter_keeps_names_and_that_there_was_an_indication(model: ClinicalVLM, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "adapter")
    config = read_json(folder / "config.json")
    assert config["sections"] == ["findings", "impression"] and config["context"] is True
    again = load(folder).spec
    assert again == model.spec and again.sections == NAMES and again.context is True
    assert card(model, {})


@pytest.mark.parametrize(("version", "context"), [("0.3.0", None), ("0.2.0", None), ("0.4.0", False), ("1.0", False)])
def test_an_adapter_without_either_is_as_before(
    version: str, context: bool | None, tiny_adapter: Path, tmp_path: Path
) -> None:
    """An earlier version may not have written it; since then nothing written means none."""
    values = read_json(tiny_adapter / "config.json")
    assert not values.keys() & {"sections", "context"}
    (tmp_path / "config.json").write_text(json.dumps(values | {"clinical_vlm_version": version}))
    spec = read_config(tmp_path).spec
    assert spec.sections == () and spec.context is context


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sections": "findings"}, "sections: findings is no list of names"),
        ({"findings": False}, "findings: no vocabulary is named 'False'"),
        ({"findings": "/etc/own.yaml"}, "findings: no vocabulary is named"),
        ({"label_findings": ["opacity"]}, "label_findings: ['opacity'] does not map names to names"),
        ({"label_findings": {"spleen": "opacity"}}, "label_findings: no label is named 'spleen'"),
        ({"sections": [1]}, "sections: [1] is no list of names"),
        ({"sections": ["a"] * 65}, "sections: 65 of them, more than 64"),
        ({"sections": ["a", "A"]}, "sections: two sections have one name"),
        ({"sections": ["\x1b[2J"]}, "cannot be shown"),
        ({"sections": ["<img src=x>"]}, "cannot be shown as a name"),
        ({"context": "yes"}, "context: yes is not true"),
        ({"context": False}, "context: False is not true"),
        ({"context": None}, "context: None is not true"),
    ],
)
def test_a_strangers_sections_are_checked(changes: dict, message: str, tiny_adapter: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | changes))
    write_manifest(folder)
    assert message in refusal(folder)


def test_a_pack_keeps_the_names_of_sections(headed: DataConfig, tmp_path: Path) -> None:
    named = [*headed.table.report[:-1], SectionConfig("impression", [], name="conclusion")]
    data = replace(headed, table=replace(headed.table, report=named))
    pack(data, tmp_path / "pack", PackOptions())
    written = read_json(tmp_path / "pack" / "pack.json")["sections"]
    assert written == [{"column": "findings", "otherwise": "No image was available."},
                       {"column": "impression", "needs": [], "name": "conclusion"}]  # fmt: skip
    assert load_cohort(DataConfig(source="packed", root=str(tmp_path / "pack"))).sections == tuple(named)


# ------------------------------------------------------------------------------------------- drafts, metrics


class Spoken(Engine):
    """An engine whose every draft is one text."""

    text = "Findings: No opacity.\x1b Impression: Normal. <b>"

    def draft(self, examples, batch_size=16, max_new_tokens=96, streamer=None):
        for _ in examples:
            yield Draft(self.text, [0.0, 0.0])


def test_a_report_holds_its_sections(model: ClinicalVLM, tiny_model) -> None:
    (report,) = Spoken(model).predict([(None, None)])
    assert report.text == "Findings: No opacity. Impression: Normal. <b>"
    assert report.sections == {"findings": "No opacity.", "impression": "Normal. <b>"} == report.to_dict()["sections"]
    (plain,) = Spoken(tiny_model).predict([(None, None)])
    assert plain.text == report.text and plain.sections == {}


def test_a_report_holds_the_table_of_findings_with_its_sections(model: ClinicalVLM) -> None:
    model.spec = replace(model.spec, label_findings={model.spec.labels[0]: "opacity"})
    (report,) = Spoken(model).predict([(None, None)])
    (row,) = report.findings
    assert (row.finding, row.status, row.section, row.sentence, row.text) == (
        "opacity", "absent", "findings", 1, "No opacity")  # fmt: skip
    assert row.label == model.spec.labels[0] and row.probability == report.probabilities[row.label]


def test_an_adapter_keeps_what_labels_stand_for_and_no_patterns_of_a_file(
    headed: DataConfig, tiny_model: ClinicalVLM, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Patterns of a stranger's adapter would be run on every draft: they stay at home, and the table with them."""
    cohort = replace(load_cohort(headed), findings="/home/me/own.yaml", label_findings={"gone": "opacity"})
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    assert spec.findings == "" and spec.label_findings == {}
    tiny_model.spec = replace(tiny_model.spec, findings="", label_findings={tiny_model.spec.labels[0]: "opacity"})
    folder = save(tiny_model, tmp_path / "adapter")
    again = load(folder)
    assert (again.spec.findings, again.spec.label_findings) == ("", tiny_model.spec.label_findings)
    engine = Spoken(again)
    assert engine.predict([(None, None)])[0].findings == ()
    use_vocabulary(engine, None)
    assert "name the file with --findings" in capsys.readouterr().err
    use_vocabulary(engine, chest())
    assert engine.predict([(None, None)])[0].findings[0].finding == "opacity" and not capsys.readouterr().err


def test_metrics_are_of_the_words_and_of_each_section(
    model: ClinicalVLM, headed: DataConfig, tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts that are their references with headings score as perfect, and so does every section."""
    cohort = load_cohort(headed)
    config = replace(tiny_config, data=headed)
    test = CaseDataset(cohort.split("test"), model.spec, cohort.sections)
    drafted = iter([Draft(test.report(index, True), [0.0, 0.0]) for index in range(len(test))])
    monkeypatch.setattr("vlm.evaluation.drafting.ReportEngine.draft", lambda *_, **__: drafted)
    config = replace(config, evaluation=replace(config.evaluation, ablation=False))
    metrics = evaluate(model, cohort, config, tmp_path / "run")
    assert metrics["text"]["rougel"]["value"] == pytest.approx(1)
    sections = metrics["sections"]
    assert set(sections) == {"findings", "impression"}
    assert [one["rougel"]["value"] for one in sections.values()] == pytest.approx([1, 1])
    assert [one["written"]["value"] for one in sections.values()] == [1, 1]
    rows = [line for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines() if "Pneumonia" in line]
    assert rows and all('"sections": {' in row and "Findings:" not in row for row in rows)
