"""The synthetic cohort: the paper's correlations, honest pictures, reports that can be read back."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from vlm.config import DataConfig, PhantomConfig
from vlm.data.ingest.phantom import draw_cases, load_phantom, opacity_masks
from vlm.data.ingest.phantom_image import LUNGS, SIZE, ZONES, draw_chest
from vlm.data.ingest.phantom_words import EVIDENCE, FINDINGS, TABLE, read_facts
from vlm.data.shown_evidence import compose_report
from vlm.errors import UserError


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_correlations_are_those_of_the_paper(seed: int) -> None:
    frame = draw_cases(PhantomConfig(cases=2000, seed=seed))
    pressure = frame["blood_pressure"].str.split("/", expand=True).apply(pd.to_numeric, errors="coerce")
    table = pd.DataFrame(
        {
            "glucose": pd.to_numeric(frame["glucose"], errors="coerce"),
            "systolic": pressure[0],
            "diastolic": pressure[1],
            "pathology": frame["pathology_probability"],
        }
    ).corr()
    wanted = {
        ("glucose", "pathology"): 0.80,
        ("systolic", "pathology"): -0.54,
        ("diastolic", "pathology"): 0.01,
        ("glucose", "systolic"): -0.01,
        ("glucose", "diastolic"): 0.03,
    }
    for (a, b), value in wanted.items():
        assert abs(table.loc[a, b] - value) <= 0.05, (a, b)


def test_the_same_seed_draws_the_same_cohort() -> None:
    config = PhantomConfig(cases=50, seed=3)
    pd.testing.assert_frame_equal(draw_cases(config), draw_cases(config))
    assert not draw_cases(config).equals(draw_cases(replace(config, seed=4)))
    first, _ = draw_chest("patchy", "left", "upper", np.random.default_rng([3, 1]))
    assert np.array_equal(first, draw_chest("patchy", "left", "upper", np.random.default_rng([3, 1]))[0])


def test_the_opacity_of_a_written_case_is_found_again(tmp_path: Path) -> None:
    """Where the picture on disk differs from the same chest drawn without an opacity."""
    data = DataConfig(root=str(tmp_path / "phantom"), phantom=PhantomConfig(cases=12, missing=0.0))
    load_phantom(data)
    rows = {row["case"]: (number, row) for number, row in enumerate(draw_cases(data.phantom).to_dict("records"))}
    masks = opacity_masks(data.phantom, set(rows))
    assert masks.keys() == rows.keys()
    for name, (number, row) in rows.items():
        assert masks[name].any() == (row["finding"] != "none")
        picture = cv2.imread(str(tmp_path / "phantom" / "images" / row["image"]), cv2.IMREAD_GRAYSCALE).astype(int)
        clean, _ = draw_chest("none", None, None, np.random.default_rng([data.phantom.seed, number]))
        if masks[name].any():
            assert (picture - clean)[masks[name]].mean() > 5 and abs((picture - clean)[~masks[name]].mean()) < 1


@pytest.mark.parametrize("finding", [name for name in FINDINGS if name != "none"])
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("zone", ["upper", "middle", "lower"])
def test_the_opacity_is_drawn_where_the_report_says(finding: str, side: str, zone: str) -> None:
    picture, mask = draw_chest(finding, side, zone, np.random.default_rng(5))
    assert picture.shape == (SIZE, SIZE) and picture.dtype == np.uint8 and mask.any()
    rows, columns = np.nonzero(mask)
    assert abs(rows.mean() / SIZE - ZONES[zone]) < 0.09
    halves = {"right": (columns < SIZE / 2).mean(), "left": (columns >= SIZE / 2).mean()}  # the patient faces us
    if side == "both":
        assert min(halves.values()) > 0.2 and len(LUNGS) == 2
    else:
        assert halves[side] > 0.95
    clean, empty = draw_chest("none", None, None, np.random.default_rng(5))
    added = picture.astype(int) - clean.astype(int)
    assert not empty.any() and added[mask].mean() > 5 and abs(added[~mask].mean()) < 1


def test_every_report_states_the_facts_of_its_case() -> None:
    for case in draw_cases(PhantomConfig(cases=300)).to_dict("records"):
        facts = read_facts(f"{case['image_report']} {case['glucose_report']} {case['pressure_report']}")
        finding = FINDINGS[case["finding"]]
        assert facts["finding"] == (finding.lower() if finding else "none")
        assert (facts["side"] or "", facts["zone"] or "") == (case["side"], case["zone"])
        if case["glucose"]:
            value = float(case["glucose"])
            assert facts["glucose"] == ("low" if value < 3.9 else "elevated" if value > 7.8 else "normal")
        if case["blood_pressure"]:
            systolic, diastolic = map(int, case["blood_pressure"].split("/"))
            high, low = systolic > 139 or diastolic > 89, systolic < 90 or diastolic < 60
            assert facts["pressure"] == ("elevated" if high else "low" if low else "normal")


def test_a_report_states_nothing_about_what_is_missing() -> None:
    texts = ["Patchy opacities in both lower zones.", "Glucose is low.", "Blood pressure is normal."]
    facts = read_facts(compose_report(texts, TABLE.report, {"vitals", "systolic", "diastolic"}))
    assert facts == {"finding": "no image", "side": None, "zone": None, "glucose": "not measured", "pressure": "normal"}


def test_wrong_reports_are_not_read_as_right() -> None:
    assert read_facts("") == dict.fromkeys(EVIDENCE)
    assert read_facts("Patchy opacities in the lung.")["finding"] == "unclear"  # said, so it counts as asserted
    assert read_facts("Glucose is elevated. Dense shad")["finding"] is None
    twice = read_facts("Patchy opacities in the left upper zone. Patchy opacities in the right upper zone.")
    assert twice["side"] == "contradiction" and twice["zone"] == "upper"
    assert read_facts("No opacity in either lung. Dense shadow in the right lower zone.")["finding"] == "contradiction"


def test_the_cohort_is_drawn_once_and_again_when_its_seed_changes(tmp_path: Path) -> None:
    data = DataConfig(root=str(tmp_path / "phantom"), phantom=PhantomConfig(cases=12))
    cohort = load_phantom(data)
    stamp = (tmp_path / "phantom" / "cases.csv").stat().st_mtime_ns
    load_phantom(data)
    assert (tmp_path / "phantom" / "cases.csv").stat().st_mtime_ns == stamp
    assert len(load_phantom(replace(data, phantom=PhantomConfig(cases=13))).dataset) == 13
    assert cohort.facts is not None and len(cohort.labels) == 9


def test_a_folder_with_other_files_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and no phantom cohort"):
        load_phantom(DataConfig(root=str(tmp_path)))
    assert (tmp_path / "thesis.txt").exists()
