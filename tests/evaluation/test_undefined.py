"""Measures that read nothing: another language, one class, no case; they are not defined, and say why."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.changed_tables import changed_table
from vlm.adapter.card import card
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.data.vitals.schema import VitalsSchema
from vlm.evaluation.agreement import why_undefined
from vlm.evaluation.evaluate import evaluate
from vlm.evaluation.measures import (
    Bootstrap,
    Reports,
    finding_measures,
    label_measures,
    number_measures,
    pooled_calibration_error,
    text_loss_measure,
    text_measures,
)
from vlm.evaluation.scoring import CaseScores
from vlm.evaluation.summary import summary_lines
from vlm.findings.labeller import chest
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.statistics.estimate import undefined
from vlm.training.run import train

is_read = chest().is_read

RUSSIAN = ["В нижней доле справа инфильтрация.", "Очаговых теней не выявлено.", "Тень в верхней доле слева (CT)."]
GERMAN = [
    "Keine Infiltrate. Kein Pleuraerguss.",
    "Das Herz ist nicht verbreitert, keine Atelektase.",
    "Kein Pneumothorax.",
]
SPANISH = ["Sin opacidades. Cardiomegalia.", "No hay neumotórax ni derrame con opacidad.", "Los pulmones sin nodules."]
FRENCH = [
    "Pas d'opacité dans le poumon droit.",
    "Pas de pneumothorax, le coeur est normal.",
    "Les nodules du lobe gauche.",
]
DANISH = ["Ingen pneumothorax.", "Hjertet er ikke forstørret.", "Opacitet i højre lunge, ingen pneumothorax."]
ITALIAN = ["Assenza di versamento.", "Cuore nei limiti, non noduli.", "Opacità nella lingula."]
MIXED = ["Pneumothorax не выявлен.", "CT: consolidation справа не определяется.", "Heart: без особенностей."]
TURKISH = ["Pneumothorax yok.", "Sağ akciğerde opasite.", "Konsolidasyon yok."]
HUNGARIAN = ["Pneumothorax nem látható.", "Pneumothorax nincs.", "Szív normál."]
INDONESIAN = ["Tidak ada pneumothorax.", "Tidak tampak opacity.", "Jantung normal."]
CHINESE = ["右肺野に浸潤影を認める。", "肺野清晰，未见异常。", "心胸比正常。"]
ENGLISH = ["No opacity in either lung.", "Cardiomegaly.", "The lungs are clear. No pneumothorax."]


@pytest.mark.parametrize(
    "reports",
    [RUSSIAN, GERMAN, SPANISH, FRENCH, DANISH, ITALIAN, MIXED, TURKISH, HUNGARIAN, INDONESIAN, ["", "…", "12 34"]],
)
def test_reports_that_the_labeller_cannot_read_give_no_rates(reports: list[str]) -> None:
    references = reports * 8
    measures = finding_measures(Reports(ENGLISH * 8, references), Bootstrap(np.arange(24), 20))
    written = sum(map(bool, references))
    why = f"the labeller reads English chest reports and found nothing in {written} references"
    for name in ("f1", "precision", "recall", "hallucination_rate", "miss_rate", "side_flip_rate"):
        assert measures[name] == {"value": None, "low": None, "high": None, "why": why}, name
    assert measures["each"] == {}


def test_a_share_that_is_too_small_is_no_measure_either() -> None:
    assert is_read("Cardiomegaly.") and is_read("Non displaced rib fracture.") and all(map(is_read, ENGLISH))
    assert is_read("Sjögren's disease: the lungs are clear, no effusion.")
    assert why_undefined(RUSSIAN * 9 + ENGLISH[:1] * 2).endswith("found a finding in only 2 of 29 references")
    assert why_undefined(RUSSIAN * 9 + ENGLISH[:1] * 3) == ""
    assert why_undefined([]) == "no test case has a reference report"
    read = finding_measures(Reports(ENGLISH * 8, ENGLISH * 8), Bootstrap(np.arange(24), 20))
    assert read["f1"]["value"] == 1 and read["hallucination_rate"]["value"] == 0


def test_drafts_that_say_nothing_readable_do_not_shine() -> None:
    measures = finding_measures(Reports(RUSSIAN * 8, ENGLISH * 8), Bootstrap(np.arange(24), 20))
    assert measures["hallucination_rate"]["why"] == "the labeller found nothing in 24 drafts"
    assert measures["miss_rate"]["value"] == 1 and measures["recall"]["value"] == 0
    assert measures["precision"]["value"] is None


@pytest.mark.parametrize(
    "reports", [RUSSIAN, GERMAN, ["右肺野に浸潤影を認める。", "肺野清晰，未见异常。", "心胸比正常。"]]
)
def test_words_of_every_language_are_words(reports: list[str]) -> None:
    """Equal drafts are like their references, in any script; half of one is in between, and another one far."""
    bootstrap = Bootstrap(np.arange(24), 0)
    same, half = (text_measures(Reports(drafts, reports * 8), bootstrap) for drafts in
                  (reports * 8, [text[: len(text) // 2] for text in reports * 8]))  # fmt: skip
    for name in ("rougel", "meteor_without_synonyms", "chrf"):
        assert same[name]["value"] > 0.95 > half[name]["value"] > 0, name
    assert same["ciderd"]["value"] > 2 * half["ciderd"]["value"] > 0


def test_an_overlap_of_nothing_is_not_defined() -> None:
    bootstrap = Bootstrap(np.arange(3), 0)
    nothing = text_measures(Reports(["a b c d"] * 3, ["…", "!", "—"]), bootstrap)
    assert all(nothing[name]["value"] is None for name in ("rougel", "meteor_without_synonyms", "ciderd", "bleu"))
    assert nothing["rougel"]["why"] == "the 3 references hold nothing that it counts"
    short = text_measures(Reports(["Clear lungs."] * 3, ["Clear lungs.", "Opacity.", "Clear."]), bootstrap)
    assert short["bleu"]["value"] is None and short["rougel"]["value"] > 0, "no reference has four words in a row"
    alike = text_measures(Reports(["The lungs are clear."] * 3, ["The lungs are clear."] * 3), bootstrap)
    assert alike["ciderd"]["value"] is None and alike["bleu"]["value"] == pytest.approx(1)


def scores_of(targets: np.ndarray) -> CaseScores:
    count = len(targets)
    return CaseScores(np.linspace(-2, 2, count)[:, None], targets[:, None], np.zeros(count), np.zeros(count))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_label_ranks_nobody(value: float) -> None:
    scores, bootstrap = scores_of(np.full(30, value)), Bootstrap(np.arange(30), 20)
    measures = label_measures(scores, scores.probabilities, ["effusion"], bootstrap)["effusion"]
    for name in ("auroc", "auprc", "calibration_slope", "calibration_intercept"):
        why = f"effusion is {value:g} in all 30 test cases where it is known"
        assert measures[name] == {"value": None, "low": None, "high": None, "why": why}
    assert measures["brier"]["value"] > 0 and measures["prevalence"] == value


def test_an_unknown_label_and_a_few_cases_have_no_calibration_error() -> None:
    unknown = scores_of(np.full(30, np.nan))
    measures = label_measures(unknown, unknown.probabilities, ["a"], Bootstrap(np.arange(30), 20))["a"]
    assert measures["brier"]["why"] == measures["ece"]["why"] == "a is unknown in every test case"
    for count, defined in ((9, False), (10, True)):
        few, bootstrap = scores_of(np.arange(count) % 2.0), Bootstrap(np.arange(count), 20)
        each = label_measures(few, few.probabilities, ["a"], bootstrap)["a"]["ece"]
        pooled = pooled_calibration_error(few, few.probabilities, bootstrap)
        for ece in (each, pooled):
            assert (ece["value"] is not None) == defined
            assert defined or ece["why"] == f"only {count} known labels for 10 bins"


def test_a_loss_or_a_statement_of_nothing_is_not_defined(tiny_config: Config) -> None:
    bootstrap = Bootstrap(np.arange(12), 20)
    assert text_loss_measure(scores_of(np.zeros(12)), bootstrap)["why"] == "no test case has a reference report"
    schema = VitalsSchema(tuple(tiny_config.data.table.vitals))
    said = number_measures(RUSSIAN * 4, np.full((12, 4), 5.0), schema, bootstrap)
    assert said == {"consistent": undefined("no draft says anything of a vital"), "statements": 0}


def test_an_evaluation_of_nothing_says_so_everywhere(tiny_model: ClinicalVLM, tiny_config: Config, tmp_path) -> None:
    """Russian reports, a constant label, images of one patient alone: sentences in place of numbers."""

    def edit(frame):
        test = frame["split"] == "test"
        frame.loc[test, "pathology"], frame.loc[test, "findings"] = "1", "Очаговых теней не выявлено."
        images = np.flatnonzero(test & (frame["image"] != ""))
        frame.loc[images[1:], "image"] = ""
        return frame

    config, _ = changed_table(tiny_config, tmp_path, edit)
    config = replace(config, evaluation=replace(config.evaluation, max_new_tokens=3))
    folder = tmp_path / "out"
    metrics = evaluate(tiny_model, load_cohort(config.data), config, folder)
    cases = metrics["cases"]
    sentences = [
        f"{cases} of {cases} drafts were cut at 3 tokens (evaluation.max_new_tokens): "
        "what they did not come to say counts as missing.",
        "Use of the image was not tested: all 1 test cases with an image are of one patient: there is no other's to "
        "show.",
        "Not defined: findings f1, findings precision, findings recall, findings hallucination rate, findings miss "
        "rate, findings negation flip rate, findings side flip rate, findings zone flip rate: the labeller reads "
        f"English chest reports and found nothing in {cases} references.",
    ]
    said = [verdict["text"] for verdict in metrics["verdicts"]]
    assert all(sentence in said for sentence in sentences), said
    assert any(text.startswith("Not defined: labels pathology auroc") for text in said)
    assert not any("Ignores the image" in text for text in said), "nobody looked"
    assert metrics["findings"]["hallucination_rate"]["value"] is None
    assert metrics["ablation"]["image_swapped"]["drafts_changed"]["value"] is None
    assert metrics["ablation"]["image_withheld"]["finding_f1_change"]["value"] is None
    assert metrics["cut_drafts"]["value"] == 1 and metrics["cut_drafts"]["cases"] == cases
    fail = lambda name: pytest.fail(f"{name} is no JSON")  # noqa: E731
    assert json.loads((folder / "metrics.json").read_text(), parse_constant=fail) == metrics
    rows = [json.loads(line, parse_constant=fail) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {row["finished"] for row in rows} == {False} and rows[0]["logits"].keys() == rows[0]["labels"].keys()
    page, lines, text = (folder / "report.html").read_text(), summary_lines(metrics), card(tiny_model, metrics)
    for words in (f"found nothing in {cases} references", "drafts were cut at 3 tokens", "are of one patient"):
        assert words in page and any(words in line for line in lines) and words in text, words
    assert "hallucination rate, 0" not in text and "| findings, hallucination rate | not defined: the labeller" in text


@pytest.mark.parametrize("empty", [["test"], ["test", "validation"]])
def test_training_without_cases_to_test_on_ends_with_what_is_not_defined(
    empty: list[str], tiny_config: Config, tmp_path, capsys
) -> None:
    config, _ = changed_table(tiny_config, tmp_path, lambda frame: frame[~frame["split"].isin(empty)])
    folder = train(replace(config, train=replace(config.train, threads=1)))
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["cases"] == 0 and metrics["baselines"] == {} and metrics["text_loss"]["value"] is None
    assert metrics["calibration"]["patients"] == (4 if empty == ["test"] else 0)
    assert metrics["labels"]["pathology"]["auroc"]["why"] == "pathology is unknown in every test case"
    said = capsys.readouterr().err
    assert "none in validation or test" in said if len(empty) == 2 else "no case is in the split test" in said
    assert (folder / "adapter" / "vlm.safetensors").is_file()
