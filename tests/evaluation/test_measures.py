"""What is measured and what is not: swaps between patients, whole logits, cut drafts, and numbers of nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.changed_tables import changed_table
from vlm.config import Config
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.data.prompt import Prompt
from vlm.evaluation.arms import ARMS, Arm, ArmCases
from vlm.evaluation.compare import compare
from vlm.evaluation.drafting import run_arm, run_arms
from vlm.evaluation.evidence_parts import choose_donors
from vlm.evaluation.scoring import score_cases
from vlm.inference.engine import ReportEngine
from vlm.inference.features import cache_features
from vlm.inference.line_counts import Counts
from vlm.inference.many import TableJob
from vlm.model.clinical_vlm import ClinicalVLM

# ------------------------------------------------------------------------------- another patient's


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_a_swap_shows_another_patient_s(cases: list[tuple[int, bool]], seed: int) -> None:
    patients, has = np.array([p for p, _ in cases]), np.array([h for _, h in cases])
    donors = choose_donors(has, patients, "swapped", seed)
    sizes = np.bincount(patients[has]) if has.any() else np.zeros(1, int)
    if (sizes > 0).sum() < 2:
        assert (donors == -1).all(), "nobody else's is there"
        return
    assert (donors[~has] == -1).all() and has[donors[has]].all()
    assert (patients[donors[has]] != patients[has]).all()
    if 2 * sizes.max() <= has.sum():
        assert sorted(donors[has]) == list(np.flatnonzero(has)), "each case's is shown once"


def arm(name: str):
    return next(arm for arm in ARMS if arm.name == name)


def test_image_and_vitals_are_not_those_of_one_patient_where_both_are_swapped(tiny_config, tmp_path: Path) -> None:
    """Else the pair that is shown would fit together, as if it were given."""
    whole = {"glucose": "6.0", "image": "0.png", "split": "test"}
    _, dataset = changed_table(tiny_config, tmp_path, lambda frame: frame.assign(**whole))
    both = Arm("both_swapped", "swapped", "swapped")
    first, second = (ArmCases(both, dataset, seed) for seed in (0, 1))
    assert (first.image_donor != first.vitals_donor).any()
    np.testing.assert_array_equal(first.vitals_donor, second.image_donor)  # the next seed's


def test_a_second_visit_is_not_another_patient(tiny_config: Config, tmp_path: Path) -> None:
    _, dataset = changed_table(
        tiny_config, tmp_path, lambda frame: frame.assign(patient=[f"p{n // 4}" for n in range(24)], split="test")
    )
    for name in ("image_swapped", "vitals_swapped"):
        cases = ArmCases(arm(name), dataset)
        donors = cases.image_donor if name == "image_swapped" else cases.vitals_donor
        shown = np.flatnonzero(cases.changed)
        assert len(shown) > 15 and not cases.undefined
        assert all(dataset.rows[int(donors[i])]["patient"] != dataset.rows[int(i)]["patient"] for i in shown)


def test_where_nobody_else_is_there_the_arm_says_so(tiny_config: Config, tmp_path: Path) -> None:
    _, alone = changed_table(tiny_config, tmp_path, lambda frame: frame.assign(patient="p0", split="test"))
    cases = ArmCases(arm("image_swapped"), alone)
    images = int(cases.has_image.sum())
    assert cases.undefined == f"all {images} test cases with an image are of one patient: there is no other's to show"
    assert "vitals are of one patient" in ArmCases(arm("vitals_swapped"), alone).undefined
    assert not ArmCases(arm("image_withheld"), alone).undefined and not ArmCases(arm("as_given"), alone).undefined


def test_what_no_case_has_cannot_be_withheld(tiny_config: Config, tmp_path: Path) -> None:
    _, none = changed_table(tiny_config, tmp_path, lambda frame: frame.assign(image=""))
    for name in ("image_swapped", "image_blanked", "image_withheld"):
        assert ArmCases(arm(name), none).undefined == "no test case has an image"
    assert not ArmCases(arm("both_withheld"), none).undefined, "their vitals are"


SHOWN = {  # name → whose image, whose vitals
    "as_given": ("own", "own"),
    "image_swapped": ("another's", "own"),
    "vitals_swapped": ("own", "another's"),
    "image_blanked": ("none", "own"),
    "image_withheld": ("none", "own"),
    "vitals_withheld": ("own", "none"),
    "both_withheld": ("none", "none"),
}


def test_each_arm_shows_what_its_name_says(tiny_config: Config, tmp_path: Path) -> None:
    """Looked at in the tensors that the model gets, not in the arm's own account of them."""
    _, dataset = changed_table(tiny_config, tmp_path, lambda frame: frame)
    assert [one.name for one in ARMS] == list(SHOWN)
    given = [dataset[index] for index in range(len(dataset))]
    for one in ARMS:
        image, vitals = SHOWN[one.name]
        cases = [ArmCases(one, dataset)[index] for index in range(len(dataset))]
        seen = [(a["pixel_values"], b["pixel_values"]) for a, b in zip(given, cases, strict=True) if a["has_image"]]
        assert {bool(b["has_image"]) for a, b in zip(given, cases, strict=True) if a["has_image"]} == {image != "none"}
        assert all(torch.equal(a, b) == (image == "own") for a, b in seen)
        assert image != "none" or not any(b.any() for _, b in seen)
        assert image != "another's" or all(any(torch.equal(b, a) for a, _ in seen) for _, b in seen)
        known = [(a["vitals"], b["vitals"]) for a, b in zip(given, cases, strict=True) if a["vitals"].isfinite().any()]
        same = [torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in known]
        assert all(same) if vitals == "own" else not any(same)
        assert vitals != "none" or all(b.isnan().all() for _, b in known)


# ------------------------------------------------------------------------------------ whole logits


@pytest.fixture
def sure_model(tiny_model: ClinicalVLM) -> ClinicalVLM:
    """A head so sure that its probabilities are 0 or 1 to the last bit."""
    with torch.no_grad():
        tiny_model.joint.head[-1].weight.mul_(3000)
    return tiny_model.eval()


def test_an_arm_s_logits_are_the_head_s_own(sure_model: ClinicalVLM, tiny_config: Config) -> None:
    """As a probability, 1 to the last bit, all of them would be one tie."""
    cohort = load_cohort(tiny_config.data)
    dataset = CaseDataset(cohort.dataset, sure_model.spec, cohort.sections)
    scores = score_cases(sure_model, dataset, 8, "test", text=False)
    cases = ArmCases(arm("image_swapped"), dataset)
    result = run_arm(sure_model, cases, tiny_config, scores, {})
    wanted = score_cases(sure_model, cases, 8, "arm", text=False).logits
    np.testing.assert_allclose(result.logits, wanted, rtol=1e-3, atol=0.05)
    assert np.abs(wanted).min() > 0 and np.median(np.abs(wanted)) > 40, "saturated"
    assert len(np.unique(result.logits[:, 0].round(2))) > 15


def test_arms_draft_some_cases_and_those_as_if_alone(sure_model: ClinicalVLM, tiny_config: Config) -> None:
    """All of the drawn patients, each with its own draft as given, which is not drafted again."""
    cohort = load_cohort(tiny_config.data)
    test = CaseDataset(cohort.dataset, sure_model.spec, cohort.sections)
    config = replace(
        tiny_config, evaluation=replace(tiny_config.evaluation, ablation=True, ablation_cases=len(test) * 2 // 3)
    )
    scores = score_cases(sure_model, test, 8, "test")
    given, arms = run_arms(sure_model, ArmCases(ARMS[0], test), config, scores)
    patients = np.array(test.rows["patient"])
    assert len(given.drafts) == len(test) and 6 <= len(arms.rows) < len(test)
    assert set(patients[arms.rows]).isdisjoint(np.delete(patients, arms.rows)), "a patient's cases stay together"
    as_given, swapped = arms.results["as_given"], arms.results["image_swapped"]
    assert list(as_given.drafts) == [given.drafts[row] for row in arms.rows]
    np.testing.assert_array_equal(as_given.losses, given.losses[arms.rows])
    few = CaseDataset(test.rows.select(arms.rows), test.spec, test.sections)
    alone = run_arm(sure_model, ArmCases(arm("image_swapped"), few), config, scores.of(arms.rows), {})
    assert swapped.drafts == alone.drafts
    np.testing.assert_allclose(swapped.losses, alone.losses, rtol=1e-4)
    reused = 0
    for name in ("image_swapped", "vitals_swapped", "image_withheld", "vitals_withheld"):
        cases = ArmCases(arm(name), few)
        reused += int((~cases.changed).sum())
        fresh = run_arm(sure_model, cases, config, scores.of(arms.rows), {})
        np.testing.assert_allclose(arms.results[name].logits, fresh.logits, rtol=1e-3, atol=0.05)
    assert reused, "a case without the evidence keeps its own draft as given"


@pytest.mark.parametrize("name", [arm.name for arm in ARMS])
def test_an_arm_is_the_same_from_features_as_from_pixels(name: str, tiny_model: ClinicalVLM, tiny_config) -> None:
    cohort = load_cohort(tiny_config.data)
    pixels = CaseDataset(cohort.dataset, tiny_model.spec, cohort.sections)
    known = replace(pixels)
    cache_features(tiny_model, [known], 8)
    some = np.flatnonzero(np.arange(len(pixels)) % 3 > 0)
    pixels, known = pixels.select(some), known.select(some)
    assert pixels.features is None and list(known.rows["id"]) == list(pixels.rows["id"])
    one, other = ArmCases(arm(name), pixels), ArmCases(arm(name), known)
    assert known[0]["pixel_values"].shape[1:] == tiny_model.vision.feature_shape, "no pixels"
    assert one.shown == other.shown and [one[0]["report"], one[1]["report"]] == [other[0]["report"], other[1]["report"]]
    from_pixels, from_features = (score_cases(tiny_model, cases, 8, name) for cases in (one, other))
    np.testing.assert_allclose(from_features.logits, from_pixels.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(from_features.losses, from_pixels.losses, rtol=1e-4)


def test_runs_are_compared_by_their_logits(tmp_path: Path) -> None:
    def write(name: str, **extra) -> str:
        (tmp_path / name).mkdir()
        rows = [
            {"id": str(n), "patient": str(n), "reference": "No opacity.", "report": "No opacity.", "tokens": 3,
             "text_loss": 1.0, "labels": {"a": n % 2}, "probabilities": {"a": 1.0},
             **{key: {"a": value(n)} for key, value in extra.items()}} for n in range(20)
        ]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "predictions.jsonl").write_text(text)
        return str(tmp_path / name)

    old = write("old")
    *_, first, second = compare([old, write("new", logits=lambda n: 50.0 + n % 2)], draws=10).splitlines()
    assert "| 0.500 (" in first and "| 1.000 (" in second, "a file of an earlier version has probabilities alone"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))])  # fmt: skip
def test_the_head_is_exact_where_the_rest_is_bf16(device: str, tiny_model: ClinicalVLM, tiny_batch) -> None:
    model, batch = tiny_model.eval().to(device), {name: value.to(device) for name, value in tiny_batch.items()}
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        f, (_, x) = model.vision(batch["pixel_values"], batch["has_image"]).f, model.vitals(batch["vitals"])
        encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
        output = model(**batch, alpha=1.0)
    with torch.no_grad():
        z, logits = model.joint(f.float(), x.float())
        known = ~torch.isnan(batch["targets"])
        bce = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], batch["targets"][known])
    assert encoded.z.dtype == encoded.logits.dtype == output.loss_bce.dtype == torch.float32
    torch.testing.assert_close(encoded.z, z, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoded.logits, logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss_bce, bce, rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------------- cut drafts


@pytest.fixture
def ends_at_3(tiny_model: ClinicalVLM, monkeypatch) -> ClinicalVLM:
    """A model whose draft of a case without evidence ends with its fourth token."""
    ids: list[torch.Tensor] = []

    class Keep:
        def put(self, value: torch.Tensor) -> None:
            ids.append(value.reshape(-1))

        def end(self) -> None: ...

    ReportEngine(tiny_model).predict([(None, {"glucose": 8})], max_new_tokens=8, streamer=Keep())
    tokens = torch.cat(ids).tolist()
    assert tokens[3] not in tokens[:3]
    monkeypatch.setattr(Prompt, "end_id", property(lambda _: tokens[3]))
    return tiny_model


def test_a_cut_draft_is_said_and_a_finished_one_is_not(ends_at_3: ClinicalVLM) -> None:
    case, other = (None, {"glucose": 8}), (None, {"bp": "190/20"})
    for most, finished in ((2, False), (3, False), (4, True), (5, True)):
        report, beside = ReportEngine(ends_at_3).predict([case, other], max_new_tokens=most)
        assert report.finished == finished == report.to_dict()["finished"]
        said = [warning for warning in report.warnings if "not finished" in warning]
        assert said == ([] if finished else [f"the draft is not finished: it was cut at {most} tokens"])
        assert beside.finished or str(most) in beside.warnings[-1], "each row of a batch ends for itself"
    slow = ReportEngine(ends_at_3)
    slow.max_seconds = 1e-9
    report = slow.predict([case], max_new_tokens=3)[0]
    assert report.warnings[-1] == "the draft is not finished: it was cut at 1e-09 seconds" and not report.finished


def test_a_table_counts_its_cut_drafts(ends_at_3: ClinicalVLM, table_root: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("glucose\n8\n8\n500\nx\n")
    for most, cut in ((2, 3), (4, 0)):
        job = TableJob(tmp_path / "few.csv", tmp_path / f"{most}.jsonl", table_root, max_new_tokens=most)
        counts = job.run(ReportEngine(ends_at_3), {})
        lines = [json.loads(line) for line in job.output.read_text().splitlines()]
        if most == 2:
            assert (counts.lines, counts.errors, counts.cut) == (4, 1, cut)
        assert counts.cut == sum(not line.get("finished", True) for line in lines)
        assert job.run(ReportEngine(ends_at_3), {}) == counts, "counted again from the file"


def test_a_line_is_counted_by_what_it_holds_and_not_by_its_words() -> None:
    counts = Counts()
    for line in ({"text": '"finished": false, "error": "x"', "finished": True}, {"error": "x"}, {"finished": False}):
        counts.add_written(json.dumps(line).encode())
    assert counts == Counts(3, 1, 1)
