"""Pictures unlike those of training lie far from them; those like them seldom do."""

import numpy as np
import pytest
import torch

from vlm.reliability.familiarity import FALSE_ALARMS, FEWEST_PICTURES, Familiarity
from vlm.reliability.label_sets import conformal_quantile

SIZE = 200


def features(rng: np.random.Generator, count: int, rank: int = 8) -> np.ndarray:
    """Draw features that vary in a few directions, N × F; the directions are always the same."""
    basis = np.random.default_rng(9).normal(size=(rank, SIZE)) * 3
    return (rng.normal(size=(count, rank)) @ basis + 0.5 * rng.normal(size=(count, SIZE)) + 10).astype(np.float32)


def distances(familiarity: Familiarity, of: np.ndarray) -> np.ndarray:
    return familiarity(torch.from_numpy(of)).numpy()


def test_false_alarms_are_as_rare_as_wanted_and_unlike_ones_are_found() -> None:
    rates, found = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        familiarity = Familiarity.fit(features(rng, 300))
        patients = [f"p{n}" for n in range(100)]
        above = conformal_quantile(distances(familiarity, features(rng, 100)), patients, 1 - FALSE_ALARMS)
        rates.append((distances(familiarity, features(rng, 200)) > above).mean())
        other = features(rng, 50) + rng.normal(size=SIZE).astype(np.float32)  # off the directions
        far = 10 + 8 * (features(rng, 50) - 10)  # along them
        found.append([(distances(familiarity, unlike) > above).mean() for unlike in (other, far)])
    assert np.mean(rates) <= FALSE_ALARMS + 0.01
    assert np.mean(found, axis=0).min() > 0.95


def test_the_distance_is_that_of_the_fitted_gaussian() -> None:
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(4000, 6)) * [5, 3, 1, 1, 1, 1] + 4
    made = Familiarity.fit(seen)
    asked = rng.normal(size=(10, 6)).astype(np.float32)
    unit, there = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (seen, asked))
    inverse = np.linalg.inv(np.cov(unit.T))
    wanted = np.sqrt([(x - unit.mean(0)) @ inverse @ (x - unit.mean(0)) / 6 for x in there])
    assert distances(made, asked) == pytest.approx(wanted, rel=1e-2)
    assert distances(made, 7 * asked) == pytest.approx(distances(made, asked), rel=1e-4), "the direction alone counts"


def test_too_few_pictures_are_no_fit_and_nothing_is_kept() -> None:
    made = Familiarity.fit(features(np.random.default_rng(0), FEWEST_PICTURES - 1))
    assert made.count == 0 and made.state_dict() == {}
    assert np.isnan(distances(made, np.zeros((3, SIZE), np.float32))).all()


def test_features_that_never_vary_give_finite_distances() -> None:
    made = Familiarity.fit(np.ones((50, SIZE), np.float32))
    assert np.isfinite(distances(made, np.ones((2, SIZE), np.float32))).all()


def test_it_is_loaded_as_it_was_saved() -> None:
    made = Familiarity.fit(features(np.random.default_rng(0), 100))
    again = Familiarity(SIZE, made.count)
    again.load_state_dict(made.state_dict())
    asked = features(np.random.default_rng(1), 5)
    assert distances(again, asked) == pytest.approx(distances(made, asked))
