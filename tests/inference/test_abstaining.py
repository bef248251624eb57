"""How sure a draft is stands beside it, and a doubtful one is withheld where that is asked for."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.fhir_bundles import of_type, validate
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.app import view
from vlm.app.service import TokenStreamer
from vlm.errors import UserError
from vlm.inference.command import OpenedCase, _streamer
from vlm.inference.engine import ReportEngine
from vlm.inference.fhir import Software, to_fhir
from vlm.inference.line_counts import Counts
from vlm.inference.open_engine import use_abstention
from vlm.model.evidence import FusedInputs
from vlm.reliability.sentences import SentenceFit
from vlm.reliability.thresholds import Reliability
from vlm.report import JudgedSentence, Report

SAID = "Pleural effusion.\nGlucose is elevated."


@pytest.fixture
def engine(tiny_model: ClinicalVLM, monkeypatch: pytest.MonkeyPatch) -> ReportEngine:
    """An engine whose draft is known: the head gives the effusion log odds of 1."""
    x = torch.full((1, 1), torch.nan)
    fused = FusedInputs(x, x, torch.tensor([[0.0, 1.0]]), x[0])
    monkeypatch.setattr(tiny_model, "generate", lambda batch, *_, **__: ([SAID], fused))
    tiny_model.spec = replace(tiny_model.spec, label_findings={"effusion": "pleural_effusion"})
    tiny_model.reliability = Reliability(sentences=SentenceFit(0.0, 1.0, 0.8, 0.2, 50))
    return ReportEngine(tiny_model)


def drafted(engine: ReportEngine, vitals: dict[str, float]) -> Report:
    return engine.predict([(None, vitals)])[0]


def test_each_sentence_says_how_sure_it_is_and_what_that_rests_on(engine: ReportEngine) -> None:
    report = drafted(engine, {"glucose": 9})
    effusion, sugar = report.sentences
    assert effusion.confidence == report.confidence == pytest.approx(1 / (1 + 2.718281828**-1))
    assert (effusion.labels, sugar.confidence, sugar.vitals) == (("effusion",), None, ("glucose",))
    assert "sentence: 'Pleural effusion': 73% sure (effusion)" in str(report).splitlines()
    assert "the draft is less sure than 80% of those of the validation cases" in report.warnings
    assert report.text == SAID and not report.withheld, "given out, with its warning"
    engine.model.reliability = Reliability(sentences=SentenceFit(0.0, 1.0, 0.5, 0.2, 50))
    assert not any("less sure" in warning for warning in drafted(engine, {"glucose": 9}).warnings)


def test_a_doubtful_draft_is_withheld_wherever_it_would_stand(engine: ReportEngine, adapter) -> None:
    use_abstention(engine)
    report = drafted(engine, {"glucose": 9})
    assert report.withheld == "the draft is less sure than 80% of those of the validation cases"
    assert (report.text, report.findings, report.sentences, report.contradictions) == ("", (), (), ())
    assert report.probabilities and report.confidence
    assert str(report).startswith(f"no draft: {report.withheld}\n") and "ffusion." not in json.dumps(report.to_dict())
    made = to_fhir(report, engine.model.spec.schema, Software("f" * 64, "base", "0.1.0"))
    validate(made)
    (given,) = of_type(made, "DiagnosticReport")
    assert "conclusion" not in given and f"no draft: {report.withheld}" in given["text"]["div"]
    assert f"No draft: {report.withheld}." in view.finished(report, adapter)
    assert _streamer(engine, object()) is None, "no words before the draft is judged"  # type: ignore[arg-type]


def test_a_judged_draft_is_printed_whole(engine: ReportEngine, capsys: pytest.CaptureFixture[str]) -> None:
    use_abstention(engine)
    case = OpenedCase(engine, Path("adapter"), [], {"glucose": 9}, "", "", None, ())
    case.draft(8, sys.stdout)
    assert capsys.readouterr().out.startswith("no draft: the draft is less sure")
    engine.model.reliability = Reliability(sentences=SentenceFit(0.0, 1.0, 0.5, 0.2, 50))
    case.draft(8, sys.stdout)
    assert capsys.readouterr().out == SAID + "\n"


@pytest.mark.parametrize(("sure", "words"), [(0.9999, "over 99% sure"), (0.001, "under 1% sure"), (0.5, "50% sure")])
def test_no_sentence_is_certain(sure: float, words: str) -> None:
    assert words in str(JudgedSentence(1, "Opacity", sure, ("pathology",), ()))


def test_the_page_does_not_show_the_words_of_a_draft_that_may_be_withheld(engine: ReportEngine) -> None:
    class Asked:
        text, is_expired = "", False

    for hidden in (False, True):
        engine.abstain, job = hidden, Asked()
        words = TokenStreamer(engine, [job])  # type: ignore[list-item]
        words.put(torch.tensor([engine.model.tokenizer("shadow")["input_ids"][0]]))
        assert bool(job.text) != hidden


def test_the_page_lists_the_sentences(engine: ReportEngine, adapter) -> None:
    shown = view.finished(drafted(engine, {"glucose": 9}), adapter)
    assert "How sure each sentence is" in shown and "73.1 %" in shown
    assert "How sure each sentence is" not in view.finished(Report("Shadow.", {}), adapter)


def test_an_adapter_that_cannot_tell_refuses_to_abstain(tiny_model: ClinicalVLM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--abstain: the adapter keeps no thresholds"):
        use_abstention(ReportEngine(tiny_model))
    tiny_model.reliability = Reliability(sentences=SentenceFit(0.5, 0.9, 0.8, 0.2, 50))
    assert ClinicalVLM.from_pretrained(save(tiny_model, tmp_path / "a")).reliability == tiny_model.reliability


def test_a_table_counts_its_withheld_drafts() -> None:
    counts = Counts()
    for line in ({"text": '"withheld": "no"', "withheld": ""}, {"text": "", "withheld": "unsure"}):
        counts.add_written(json.dumps(line).encode())
    assert counts == Counts(2, 0, 0, 1)
