"""Vitals: names, values, units, scale."""

import numpy as np
import pytest

from vlm.config import VitalConfig
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics, describe
from vlm.errors import UserError

SCHEMA = VitalsSchema(
    (
        VitalConfig("glucose", "mmol/L", ["glu"], plausible=[1, 50]),
        VitalConfig("systolic", "mmHg"),
        VitalConfig("diastolic", "mmHg"),
        VitalConfig("sex", categories=["F", "M"]),
    )
)


def test_values_are_read_by_name_alias_and_pressure() -> None:
    x, implausible = SCHEMA.parse({"GLU": "8.7", "Blood Pressure": "145/90", "sex": "m"})
    np.testing.assert_allclose(x, [8.7, 145, 90, 1], rtol=1e-6)
    assert not implausible
    assert describe(SCHEMA, x.tolist()) == {"glucose": 8.7, "systolic": 145.0, "diastolic": 90.0, "sex": "M"}


@pytest.mark.parametrize("word", ["", "NA", "nan", None, float("nan"), "unknown"])
def test_missing_words_are_missing(word: object) -> None:
    x, _ = SCHEMA.parse({"glucose": word, "bp": word, "sex": word})
    assert np.isnan(x).all()


def test_an_impossible_value_is_missing_and_reported() -> None:
    x, implausible = SCHEMA.parse({"glucose": "175"})
    assert np.isnan(x[0]) and implausible == {"glucose": 175.0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [1e308, -1e308, "1e308", 3.5e38, "-3.5e38", 10**300])
def test_a_value_beyond_the_models_numbers_is_missing_without_a_warning(value: float | str) -> None:
    """With a plausible range and without."""
    x, implausible = SCHEMA.parse({"glucose": value, "systolic": value})
    assert np.isnan(x).all() and implausible == {"glucose": float(value), "systolic": float(value)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"glucos": 5}, "unknown vital glucos; did you mean glucose?"),
        ({"qqq": 5}, "unknown vital qqq; known: glucose"),
        ({"glucose": "high"}, "glucose: 'high' is not a number (mmol/L)"),
        ({"glucose": "inf"}, "not a finite number"),
        ({"glucose": 5, "glu": 5}, "both give glucose"),
        ({"bp": "120/80", "systolic": 120}, "both give systolic"),
        ({"bp": "120"}, "write systolic/diastolic"),
        ({"bp": "a/b"}, "bp: 'a' is not a number"),
        ({"sex": "q"}, "'q' is none of F, M"),
    ],
)
def test_a_wrong_value_names_the_place(values: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        SCHEMA.parse(values, "cases.csv: row 7")
    assert message in str(error.value) and str(error.value).startswith("cases.csv: row 7")


def test_a_name_declared_twice_is_refused() -> None:
    with pytest.raises(UserError, match="declared twice"):
        VitalsSchema((VitalConfig("a", aliases=["b"]), VitalConfig("b")))


def test_statistics_are_robust_and_survive_empty_and_constant_columns() -> None:
    rng = np.random.default_rng(0)
    glucose = rng.normal(7, 2, 1001)
    glucose[0] = 1e6  # a typing error must not move the scale
    x = np.column_stack([glucose, np.full(1001, 120.0), np.full(1001, np.nan), np.zeros(1001)])
    statistics = VitalsStatistics.fit(SCHEMA, x, bins=4)
    assert abs(statistics.centre[0] - 7) < 0.3 and abs(statistics.scale[0] - 2) < 0.3
    assert statistics.centre[1] == 120 and statistics.scale[1] == 1
    assert statistics.centre[2] == 0 and statistics.scale[2] == 1
    for edges in statistics.edges[:3]:
        assert len(edges) == 5 and np.all(np.diff(edges) > 0)
    assert statistics.edges[3] == ()
