"""The recalibration of an adapter for a site: fitted, written, read strictly and used where it is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

from vlm import ClinicalVLM
from vlm.adapter import open_adapter
from vlm.adapter.site_calibration import SiteCalibration, read_site, site_file, write_site
from vlm.app.about import Adapter
from vlm.app.view import meaning
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.evaluation.recalibrate import fit_line, fit_site, move_thresholds, set_apart
from vlm.evaluation.scoring import CaseScores
from vlm.model.calibration import Calibration

SITE = SiteCalibration(2.0, 40, 50, "north", (1.5, 2.0), (-0.5, 0.0))


def test_a_temperature_and_an_offset_a_label() -> None:
    found = SITE.probabilities(torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    np.testing.assert_allclose(found[0], expit([3 / 1.5 - 0.5, 0.5]), atol=1e-12)
    assert SITE.describe() == "probabilities recalibrated for the site north on 40 of its patients"


def test_the_line_undoes_what_was_done() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    y = (rng.random(20_000) < expit(logits / 2 - 1)).astype(float)
    assert fit_line(logits, y) == pytest.approx((2.0, -1.0), abs=0.1)
    temperature, offset = fit_line(np.array([-1.0] * 20 + [1.0] * 20), np.repeat([0.0, 1.0], 20))
    assert 0.05 <= temperature < 0.2 and abs(offset) <= 30, "classes that are apart end near the bounds"


def test_one_offset_by_hand() -> None:
    """Equal logits of 0, three of four positive: the probability is 3/4, so the offset log 3."""
    assert fit_line(np.zeros(40), np.tile([1.0, 1, 1, 0], 10))[1] == pytest.approx(np.log(3), abs=1e-3)


def test_a_label_of_too_few_patients_keeps_its_own_temperature() -> None:
    targets = np.column_stack([np.tile([1.0, 0], 20), [1.0] * 9 + [0.0] * 31])
    scores = CaseScores(np.random.default_rng(0).normal(size=(40, 2)), targets, np.zeros(40), np.zeros(40))
    found, notes = fit_site(scores, ["a", "b"], [f"p{n}" for n in range(40)], Calibration(3.0, 9, 9), "north")
    assert (found.temperatures[1], found.offsets[1]) == (3.0, 0.0) and found.temperatures[0] != 3.0
    assert (found.patients, found.cases, found.temperature) == (40, 40, 3.0)
    assert notes[1] == "b: not recalibrated: 9 of the patients have it, 31 lack it; 10 of each are needed"


def test_moved_thresholds_make_the_same_decisions() -> None:
    logits = np.linspace(-4, 4, 41)
    points = {"a": {"sensitivity_0.9": {"threshold": {"value": 0.3, "low": None, "high": None}}}, "b": {}}
    moved = move_thresholds(points, ["a", "b"], SITE)["a"]["sensitivity_0.9"]["threshold"]["value"]
    assert moved == pytest.approx(expit(logit(0.3) * 2 / 1.5 - 0.5))
    np.testing.assert_array_equal(expit(logits / 2) >= 0.3, expit(logits / 1.5 - 0.5) >= moved)


def test_patients_who_are_set_apart_are_not_tested(tiny_config: Config) -> None:
    from dataclasses import replace

    table = replace(tiny_config.data.table, split=None)
    split = replace(tiny_config.data.split, validation=0.0, test=1.0)
    cohort = load_cohort(replace(tiny_config.data, table=table, split=split))
    apart = set_apart(cohort, 6)
    used, tested = (set(apart.split(name)["patient"]) for name in ("validation", "test"))
    assert len(used) == 6 and len(tested) == 14 and not used & tested
    assert len(apart.split("validation")) + len(apart.split("test")) == 24
    assert set(set_apart(cohort, 7).split("validation")["patient"]) > used, "one more moves nobody else"
    with pytest.raises(UserError, match="--recalibrate_on 20: must be 1 to 19; the site has 20 patients"):
        set_apart(cohort, 20)
    with pytest.raises(UserError, match="these data have a validation split"):
        set_apart(apart, 2)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda v: v.pop("cases"), "not the calibration of a site; its keys are adapter, cases, labels"),
        (lambda v: v.update(extra=1), "not the calibration of a site"),
        (lambda v: v.update(adapter="0" * 64), "fitted to another adapter than"),
        (lambda v: v["labels"].pop("effusion"), "labels: are not those of the adapter, pathology, effusion"),
        (lambda v: v["labels"].update(effusion={"temperature": 1}), "effusion: has a temperature and an offset"),
        (lambda v: v["labels"]["effusion"].update(offset="1"), "effusion: temperature and offset are numbers"),
        (lambda v: v["labels"]["effusion"].update(temperature=0), "a temperature is not from 0.0001 to 10000"),
        (lambda v: v["labels"]["effusion"].update(offset=31), "an offset is not from -30 to 30"),
        (lambda v: v.update(patients=0), "fitted on 0 patients"),
        (lambda v: v.update(patients=True), "patients and cases are whole numbers"),
        (lambda v: v.update(site="../x"), "is no name"),
    ],
)
def test_a_file_is_read_strictly(edit, said: str, tiny_adapter: Path, tmp_path: Path) -> None:
    opened, file = open_adapter(str(tiny_adapter)), tmp_path / "site-north.json"
    write_site(file, opened, SITE)
    assert read_site(file, opened) == SiteCalibration(1.0, 40, 50, "north", (1.5, 2.0), (-0.5, 0.0))
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=said) as error:
        read_site(file, opened)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
    assert site_file(tiny_adapter, "north") == tiny_adapter.resolve().parent / "site-north.json"


def test_a_model_at_a_site_drafts_with_it_and_is_not_saved(
    tiny_adapter: Path, adapter: Adapter, tmp_path: Path
) -> None:
    opened, file = open_adapter(str(tiny_adapter)), tmp_path / "site-north.json"
    write_site(file, opened, SITE)
    own, there = (ClinicalVLM.from_pretrained(tiny_adapter, site=site) for site in (None, file))
    before, after = (model.predict(None, {"glucose": 8}, max_new_tokens=2) for model in (own, there))
    assert "recalibrated for the site north on 40 of its patients" in after.calibration
    for name, scale, offset in zip(before.probabilities, (1.5, 2.0), (-0.5, 0.0), strict=True):
        raw = logit(before.probabilities[name]) * own.calibration.temperature
        assert after.probabilities[name] == pytest.approx(expit(raw / scale + offset), abs=1e-5)
    with pytest.raises(UserError, match="an adapter holds none of a site"):
        there.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    shown = meaning(adapter.calibrated(there.calibration).config.calibration)
    assert "the site north" in shown and "temperature" not in shown
