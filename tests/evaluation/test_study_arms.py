"""Arms of studies: view, prior, context and trend swapped or withheld, one at a time."""

import numpy as np
import pandas as pd
import pytest
import torch

from vlm.config import DataConfig, PhantomConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.phantom import draw_cases, load_phantom
from vlm.data.ingest.phantom_study import EARLIER, STUDY_FACTS, change_sentence
from vlm.evaluation.ablation import verdicts
from vlm.evaluation.arms import ARMS, Arm, ArmCases, all_arms
from vlm.evaluation.measures import Bootstrap, fact_measures

CONFIG = PhantomConfig(cases=60, missing=0.1, study=True)
PARTS = {"lateral": "effusion", "prior": "change", "context": "reason", "trend": "trend"}
"""Part of the evidence → the fact that it alone shows."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> CaseDataset:
    """A cohort of studies, all of it as one split."""
    root = tmp_path_factory.mktemp("study") / "cohort"
    cohort = load_phantom(DataConfig(root=str(root), phantom=CONFIG))
    return CaseDataset(cohort.dataset, CaseSpec.fit(cohort, ImageSpec(64), bins=4, max_images=3), cohort.sections)


@pytest.fixture(scope="module")
def examples(study: CaseDataset) -> list[dict]:
    return [study[index] for index in range(len(study))]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return draw_cases(CONFIG)


def _arm(name: str, dataset: CaseDataset) -> ArmCases:
    return ArmCases(next(arm for arm in all_arms(dataset) if arm.name == name), dataset)


def _seen(dataset: CaseDataset, example: dict) -> dict[str, object]:
    """Take apart what the model is given: role → picture, and the texts and values."""
    schema, roles = dataset.spec.schema, {}
    for pixels, (view, prior, _) in zip(example["pixel_values"], example["image_roles"].tolist(), strict=True):
        views = ("", *dataset.spec.study.views)
        roles["prior" if prior else views[int(view)] if example["has_image"] else ""] = pixels.numpy().tobytes()
    values = dict(zip(schema.names, example["vitals"].nan_to_num(-1).tolist(), strict=True))
    trend = {name: values.pop(name) for name in ("glucose_change", "glucose_slope", "glucose_count")}
    return {"PA": None, "lateral": None, "prior": None, **roles, "context": example["context"], "vitals": values,
            "trend": trend}  # fmt: skip


def test_a_plain_cohort_has_the_arms_of_image_and_vitals_alone(tmp_path, study: CaseDataset) -> None:
    cohort = load_phantom(DataConfig(root=str(tmp_path / "plain"), phantom=PhantomConfig(cases=20)))
    plain = CaseDataset(cohort.dataset, CaseSpec.fit(cohort, ImageSpec(64), bins=4), cohort.sections)
    assert all_arms(plain) == list(ARMS)
    names = [arm.name for arm in all_arms(study)]
    assert names == [
        *(arm.name for arm in ARMS),
        *(f"{part}_{how}" for part in PARTS for how in ("swapped", "withheld")),
    ]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["swapped", "withheld"])
def test_an_arm_changes_its_own_part_and_nothing_else(
    part: str, how: str, study: CaseDataset, examples: list[dict]
) -> None:
    cases, changed = _arm(f"{part}_{how}", study), 0
    assert not cases.undefined
    given = [_seen(study, example) for example in examples]
    known = [seen[part] for seen in given]
    for index, own in enumerate(given):
        example = cases[index]
        seen = _seen(study, example)
        assert {name for name in own if seen[name] != own[name]} <= {part}
        assert example["report"] == examples[index]["report"], "the reference stays the case's own"
        changed += seen[part] != own[part]
        if how == "swapped":
            assert seen[part] in known
        elif part == "trend":
            assert seen[part]["glucose_change"] == -1 and seen[part]["glucose_count"] in (1, -1)
        else:
            assert not seen[part]
    assert changed >= 0.6 * cases.changed.sum() > 0  # some contexts and trends are alike


def test_image_arms_swap_and_withhold_all_images_of_a_study(study: CaseDataset, examples: list[dict]) -> None:
    swapped, withheld = _arm("image_swapped", study), _arm("image_withheld", study)
    for index in np.flatnonzero(swapped.has_image).tolist():
        donor = int(swapped.image_donor[index])
        assert torch.equal(swapped[index]["pixel_values"], examples[donor]["pixel_values"])
        assert torch.equal(swapped[index]["image_roles"], examples[donor]["image_roles"])
        assert not withheld[index]["has_image"]


def test_cases_that_are_shown_the_same_are_drafted_once(study: CaseDataset) -> None:
    seen: dict = {}
    arms = [ArmCases(arm, study) for arm in all_arms(study)]
    for cases in arms:
        for index, shown in enumerate(cases.shown):
            example = cases[index]
            first = seen.setdefault(shown, example)
            assert torch.equal(first["pixel_values"], example["pixel_values"])
            assert torch.equal(first["vitals"].nan_to_num(-1), example["vitals"].nan_to_num(-1))
            assert first["context"] == example["context"]
    assert len(seen) < 0.8 * len(arms) * len(study)


def test_the_facts_wanted_are_those_of_the_evidence_shown(study: CaseDataset) -> None:
    own = [STUDY_FACTS.read(study.report(index)) for index in range(len(study))]
    assert _arm("as_given", study).facts(STUDY_FACTS) == own
    for part, fact in PARTS.items():
        swapped, withheld = _arm(f"{part}_swapped", study), _arm(f"{part}_withheld", study)
        for index, (wanted, without) in enumerate(
            zip(swapped.facts(STUDY_FACTS), withheld.facts(STUDY_FACTS), strict=True)
        ):
            others = set(own[index]) - {fact}
            assert all(wanted[name] == without[name] == own[index][name] for name in others)
            assert without[fact] == STUDY_FACTS.unsaid[fact]
            donor = int(swapped.donor(part)[index])
            if donor >= 0 and part != "prior":
                assert wanted[fact] == own[donor][fact]


def test_the_change_from_another_s_prior_follows_its_size(study: CaseDataset, frame: pd.DataFrame) -> None:
    """The prior picture that is shown decides, with whether today's shows an opacity."""
    cases, seen = _arm("prior_swapped", study), set()
    sizes = {extent: change for change, (extent, _) in EARLIER.items()}
    for index, wanted in enumerate(cases.facts(STUDY_FACTS)):
        today, donor = frame.iloc[index], frame.iloc[int(cases.donor("prior")[index])]
        if wanted["change"] == "no comparison":
            assert not today["image"] or not today["prior"]
            continue
        there = donor["prior_finding"] != "none"
        if today["finding"] == "none":
            assert wanted["change"] == ("resolved" if there else "none")
        else:
            extent = EARLIER.get(donor["change"], (1.0,))[0]
            assert wanted["change"] == (sizes[extent] if there else "new")
        seen.add(wanted["change"])
    assert seen == {"new", "larger", "smaller", "unchanged", "resolved", "none"}


def _written(facts: dict) -> str:
    """Write the report of a reader who states these facts."""
    finding = {"none": "No opacity in either lung.", "no image": "No image was available."}.get(
        facts["finding"],
        f"{facts['finding']} in both {facts['zone']} zones."
        if facts["side"] == "both"
        else f"{facts['finding']} in the {facts['side']} {facts['zone']} zone.",
    )
    change = "No comparison." if facts["change"] == "no comparison" else change_sentence(facts["change"])
    lateral = {"small": "Small posterior effusion.", "none": "No effusion.", "no lateral": "No lateral view."}
    trend = "No earlier glucose." if facts["trend"] == "not known" else f"Glucose is {facts['trend']}."
    vitals = f"Glucose was {facts['glucose']}. {trend} Blood pressure was {facts['pressure']}."
    return f"Reason: {facts['reason']}. {finding} {change} {lateral[facts['effusion']]} {vitals}"


def test_one_who_reads_everything_is_right_and_one_who_does_not_is_found_out(study: CaseDataset) -> None:
    bootstrap = Bootstrap(np.array(study.rows["patient"], dtype=object), 200)
    blind = study.reports
    for part, fact in PARTS.items():
        for how in ("swapped", "withheld"):
            cases = _arm(f"{part}_{how}", study)
            reader = [_written(facts) for facts in cases.facts(STUDY_FACTS)]
            good, bad = (fact_measures(cases, STUDY_FACTS, drafts, bootstrap) for drafts in (reader, blind))
            for kind in ("image", "vitals", *PARTS):
                assert good[f"{kind}_facts_right"]["value"] in (1.0, None), kind
            without = f"{fact}_asserted_without_{part}"
            assert good[without]["value"] == 0
            if how == "swapped":
                assert bad[f"{part}_facts_right"]["value"] < 0.75
            else:
                assert good[f"{part}_facts_right"]["cases"] == 0 and good[without]["cases"] == len(study)
                assert bad[without]["value"] > 0.4
    plain = fact_measures(_arm("as_given", study), STUDY_FACTS, blind, bootstrap)
    assert all(value["value"] in (0.0, 1.0) for value in plain.values())


def test_the_verdicts_name_each_part(study: CaseDataset) -> None:
    def change(value: float) -> dict:
        measure = {"value": value, "low": value - 0.1, "high": value + 0.1, "why": ""}
        return {"text_loss_change": measure, "auroc_change": {**measure, "value": None, "low": None, "high": None},
                "drafts_changed": measure, "changed_cases": 40}  # fmt: skip

    names = [arm.name for arm in all_arms(study) if arm.name != "as_given"]
    ablation = {name: change(0.0 if name == "trend_swapped" else 0.5) for name in names}
    texts = [item["text"] for item in verdicts({"distinct_reports": 50, "cases": 60, "ablation": ablation})]
    for part in ("image", "vitals", "lateral", "prior", "context"):
        assert any(text.startswith(f"The text uses the {part}: with another patient's") for text in texts), part
    assert any(text.startswith("Ignores the trend: with another patient's") for text in texts)


def test_an_arm_of_what_no_case_has_says_so(study: CaseDataset) -> None:
    bare = CaseDataset(study.rows.select([0]), study.spec, study.sections)
    for part, what in (("oblique", "a view oblique"), ("prior", "an earlier study")):
        rows = bare.rows.map(lambda row: {"images": [cell for cell in row["images"] if not cell["prior"]]})
        cases = ArmCases(Arm(f"{part}_withheld", part=part, shown="none"), CaseDataset(rows, bare.spec, bare.sections))
        assert cases.undefined == f"no test case has {what}"
