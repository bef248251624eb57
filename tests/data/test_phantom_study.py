"""Studies of the synthetic cohort: each fact is shown by one kind of evidence, and by nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from vlm.config import DataConfig, PhantomConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.phantom import draw_cases, load_phantom, opacity_masks, write_cohort
from vlm.data.ingest.phantom_image import SIZE, draw_chest
from vlm.data.ingest.phantom_lateral import draw_lateral
from vlm.data.ingest.phantom_study import (
    EARLIER,
    MISSING,
    REASONS,
    STUDY_EVIDENCE,
    STUDY_FACTS,
    STUDY_LABELS,
    STUDY_TABLE,
    STUDY_UNSAID,
    STUDY_VERSION,
    read_study_facts,
    study_pictures,
)
from vlm.data.shown_evidence import compose_report

CONFIG = PhantomConfig(cases=400, seed=3, study=True)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return draw_cases(CONFIG)


def _written(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def test_the_frontal_pictures_and_other_columns_are_those_of_the_plain_cohort(tmp_path) -> None:
    """So nothing in the frontal picture tells of the effusion, the prior, the trend or the reason."""
    study, plain = (PhantomConfig(cases=12, seed=3, study=study) for study in (True, False))
    for name, config in (("study", study), ("plain", plain)):
        write_cohort(config, tmp_path / name)
    with_study, without = draw_cases(study), draw_cases(plain)
    pd.testing.assert_frame_equal(with_study[without.columns].drop(columns="glucose"), without.drop(columns="glucose"))
    pictures = _written(tmp_path / "study")
    frontal = _written(tmp_path / "plain")
    assert frontal and all(pictures[name] == data for name, data in frontal.items())
    others = {name for column in ("lateral", "prior") for name in with_study[column] if name}
    assert pictures.keys() - frontal.keys() == others and others


def test_the_same_seed_draws_the_same_studies(frame: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(frame, draw_cases(CONFIG))
    other = draw_cases(PhantomConfig(cases=400, seed=4, study=True))
    assert not frame["effusion"].equals(other["effusion"])
    case = frame[(frame["lateral"] != "") & (frame["prior"] != "")].iloc[0].to_dict()
    first, second = study_pictures(3, case, 5), study_pictures(3, case, 5)
    assert list(first) == [case["lateral"], case["prior"]]
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_what_one_kind_of_evidence_shows_nothing_else_foretells(frame: pd.DataFrame) -> None:
    """No fact of a study is correlated with another's, nor with which evidence is missing."""
    big = draw_cases(PhantomConfig(cases=2000, study=True))
    facts = big[["effusion", "pathology"]].assign(
        rising=big["trend"] == "rising",
        falling=big["trend"] == "falling",
        **{name: big[name] == "" for name in ("lateral", "prior", "indication", "image")},
        grew=big["change"].isin(["new", "larger"]),
        **{name: big["indication"] == text for name, text in REASONS.items()},
    )
    correlations = facts.astype(float).corr().to_numpy()
    related = {("rising", "falling"), ("pathology", "grew")}
    for i, first in enumerate(facts):
        for j, second in enumerate(facts):
            both_of_one = {first, second} <= {*REASONS, "indication"} or (first, second) in related
            if i < j and not both_of_one:
                assert abs(correlations[i, j]) < 0.09, (first, second)
    for name, share in MISSING.items():
        lacks = (~big["glucose"].str.contains(";")).mean() if name == "trend" else (big[name] == "").mean()
        assert abs(lacks - share) < 0.06, name


def test_the_lateral_view_differs_with_fluid_only_in_the_posterior_angle() -> None:
    for seed in range(6):
        dry, wet = (draw_lateral(fluid, np.random.default_rng([seed, 2])).astype(int) for fluid in (False, True))
        assert dry.shape == (SIZE, SIZE)
        rows, columns = np.nonzero(np.abs(wet - dry) > 20)
        assert 400 < len(rows) < 4000  # 1 to 6 % of the picture
        assert rows.min() > 0.5 * SIZE and columns.min() > 0.4 * SIZE


@pytest.mark.parametrize("finding", ["mild", "patchy", "dense"])
def test_the_prior_opacity_has_the_size_that_the_change_says(finding: str) -> None:
    """The area grows by steps that stay apart at the encoder's size."""
    sizes = {}
    for change in ("larger", "unchanged", "smaller"):
        masks = [
            draw_chest(finding, "left", "lower", np.random.default_rng([3, n]), *EARLIER[change])[1] for n in range(8)
        ]
        small = [cv2.resize(mask.astype(np.uint8), (224, 224)) for mask in masks]
        sizes[change] = np.array([mask.sum() for mask in small])
    assert (sizes["unchanged"] > 1.5 * sizes["larger"]).all() and (sizes["smaller"] > 1.3 * sizes["unchanged"]).all()


def test_a_prior_shows_the_same_chest_on_another_film() -> None:
    case = {"prior": "p.png", "prior_finding": "none", "prior_side": "", "prior_zone": "", "change": "none"}
    for number in range(4):
        today, _ = draw_chest("none", None, None, np.random.default_rng([3, number]))
        other, _ = draw_chest("none", None, None, np.random.default_rng([3, number + 50]))
        before = study_pictures(3, case, number)["p.png"]
        assert not np.array_equal(today, before)
        matches = [_best_match(before, picture) for picture in (today, other)]
        assert matches[0] > matches[1]


def _best_match(picture: np.ndarray, template: np.ndarray) -> float:
    """Correlate the upright middle of a picture with another, over shifts and scales."""
    crop = cv2.GaussianBlur(template, (0, 0), 2)[60:200, 50:206]
    picture = cv2.GaussianBlur(picture, (0, 0), 2)
    scores = []
    for angle in range(-8, 9):
        for scale in np.arange(0.86, 1.15, 0.02):
            turned = cv2.warpAffine(picture, cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, scale), (SIZE, SIZE))
            scores.append(float(cv2.matchTemplate(turned, crop, cv2.TM_CCOEFF_NORMED).max()))
    return max(scores)


def test_every_study_report_states_the_facts_of_its_case(frame: pd.DataFrame) -> None:
    for case in frame.to_dict("records"):
        facts = read_study_facts(" ".join(case[section.column] for section in STUDY_TABLE.report))
        assert facts.keys() == STUDY_EVIDENCE.keys() and None not in (facts["finding"], facts["pressure"])
        assert facts["effusion"] == ("small" if case["effusion"] else "none")
        assert facts["change"] == case["change"]
        assert case["indication"] in ("", REASONS[str(facts["reason"])])
        values = [float(part.split("@")[0]) for part in filter(None, case["glucose"].split(";"))]
        if len(values) == 3:
            rise = values[2] - values[0]
            assert facts["trend"] == ("rising" if rise > 1 else "falling" if rise < -1 else "stable")
            assert abs(rise) < 0.35 or abs(rise) > 1.1
        assert [case[name] for name in STUDY_LABELS if name.endswith("_opacity")][3:] == [
            int(case["change"] == name) for name in ("new", "larger", "smaller", "unchanged", "resolved")
        ]


def test_a_study_report_states_nothing_about_what_is_missing() -> None:
    texts = ["Reason: fever.", "Dense shadow in the left lower zone.", "The opacity is new.", "No effusion."]
    texts += ["Glucose is low.", "Glucose is rising.", "Blood pressure is normal."]
    report = compose_report(texts, STUDY_TABLE.report, {"vitals", "systolic", "diastolic"})
    assert read_study_facts(report) == {
        "finding": "no image",
        "side": None,
        "zone": None,
        "glucose": "not measured",
        "pressure": "normal",
        "effusion": "no lateral",
        "change": "no comparison",
        "trend": "not known",
        "reason": "not given",
    }


def test_wrong_study_reports_are_not_read_as_right() -> None:
    assert read_study_facts("The opacity is larger. The opacity is smaller.")["change"] == "contradiction"
    assert read_study_facts("No comparison. The opacity is new.")["change"] == "contradiction"
    assert read_study_facts("The opacity is larger than ever.")["change"] is None
    assert read_study_facts("The opacity is new.")["finding"] is None
    assert read_study_facts("No effusion. Small posterior effusion.")["effusion"] == "contradiction"
    assert read_study_facts("Glucose is normal. Glucose is rising.")["glucose"] == "normal"


def test_a_study_is_read_with_the_roles_of_its_images(tmp_path) -> None:
    """Frontal, lateral and prior, with the days between; glucose over time; the indication as context."""
    data = DataConfig(root=str(tmp_path / "study"), phantom=replace(CONFIG, cases=40))
    cohort, frame = load_phantom(data), draw_cases(data.phantom)
    assert cohort.facts == STUDY_FACTS and cohort.labels == tuple(STUDY_LABELS)
    change = cohort.schema.names.index("glucose_change")
    for row, case in zip(cohort.dataset, frame.to_dict("records"), strict=True):
        wanted = {(case["image"], "PA", False, 0), (case["lateral"], "lateral", False, 0)}
        wanted |= {(case["prior"], "PA", True, case["prior_days"])}
        found = {(Path(cell["path"]).name, cell["view"], cell["prior"], cell["days"]) for cell in row["images"]}
        assert found == {role for role in wanted if role[0]}
        assert (row["context"] or "") == case["indication"]
        values = [float(part.split("@")[0]) for part in filter(None, case["glucose"].split(";"))]
        told = row["vitals"][change]
        assert abs(told - (values[-1] - values[0])) < 1e-4 if len(values) == 3 else np.isnan(told)


def test_every_reference_of_a_study_states_what_its_evidence_shows(tmp_path) -> None:
    data = DataConfig(root=str(tmp_path / "study"), phantom=replace(CONFIG, cases=40, missing=0.2))
    cohort, frame = load_phantom(data), draw_cases(data.phantom)
    dataset = CaseDataset(cohort.dataset, CaseSpec.fit(cohort, ImageSpec(64), 4, max_images=3), cohort.sections)
    for report, case in zip(dataset.reports, frame.to_dict("records"), strict=True):
        facts = read_study_facts(report)
        assert None not in {facts[name] for name in STUDY_UNSAID}
        said = {name for name, word in STUDY_UNSAID.items() if facts[name] != word}
        shown = {"finding": case["image"], "effusion": case["lateral"], "change": case["image"] and case["prior"]}
        shown |= {"reason": case["indication"], "glucose": case["glucose"], "pressure": case["blood_pressure"]}
        shown |= {"trend": ";" in case["glucose"]}
        assert said == {name for name, there in shown.items() if there}


def test_a_cohort_of_studies_takes_no_folder_of_the_plain_one(tmp_path) -> None:
    """The stamp of a plain cohort is that of earlier versions; one of studies is drawn anew."""
    data = DataConfig(root=str(tmp_path / "cohort"), phantom=PhantomConfig(cases=12, seed=3))
    load_phantom(data)
    stamp = tmp_path / "cohort" / "cohort.json"
    assert json.loads(stamp.read_text()) == {"version": 1, "cases": 12, "seed": 3, "missing": 0.04}
    study = replace(data, phantom=replace(data.phantom, study=True))
    assert "effusion" in load_phantom(study).labels and json.loads(stamp.read_text())["study"] == STUDY_VERSION
    assert "effusion" not in load_phantom(data).labels


def test_the_opacity_of_a_study_s_frontal_picture_is_where_the_plain_cohort_has_it() -> None:
    plain, study = (PhantomConfig(cases=12, seed=3, study=study) for study in (False, True))
    names = set(draw_cases(plain)["case"])
    masks, same = opacity_masks(study, names), opacity_masks(plain, names)
    assert masks.keys() == names and all(np.array_equal(masks[name], same[name]) for name in names)
