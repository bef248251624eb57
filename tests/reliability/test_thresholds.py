"""What an adapter keeps to judge its drafts goes to JSON and back, and is checked when it is read."""

import json
from typing import Any

import pytest

from vlm.errors import UserError
from vlm.reliability.label_sets import LabelThresholds
from vlm.reliability.thresholds import Reliability

LABELS = ("pathology", "effusion")
FITTED = Reliability(0.9, {"pathology": LabelThresholds(0.25, 0.5)})


def read(values: Any) -> Reliability:
    return Reliability.read(json.loads(json.dumps(values)), LABELS, "config.json")


def test_it_goes_to_json_and_back() -> None:
    assert read(FITTED.to_dict()) == FITTED and read({}) == Reliability()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "the config is a mapping of keys"),
        ({"coverag": 0.9}, "unknown key coverag; did you mean coverage"),
        ({"coverage": "0.9"}, "coverage: must be a number"),
        ({"coverage": 1.0}, "reliability.coverage: must be 0.5 or more and below 1"),
        ({"coverage": 0.1}, "reliability.coverage: must be 0.5 or more and below 1"),
        ({"label_sets": {"x": {"present": 0.1, "absent": 0.2}}}, r"reliability.label_sets: 'x' is no label"),
        ({"label_sets": {"pathology": {"present": 0.1}}}, "label_sets.pathology.absent is missing"),
        ({"label_sets": {"pathology": {"present": 0.1, "absent": 7}}}, "are no probabilities"),
        ({"label_sets": {"pathology": {"present": 0.1, "absent": 0.2, "more": 1}}}, "unknown key .*pathology.more"),
        ({"label_sets": {"pathology": {"present": True, "absent": 0.2}}}, "must be a number"),
        ({"label_sets": {"pathology": [0.1, 0.2]}}, "label_sets.pathology: must be a mapping"),
    ],
)
def test_a_wrong_one_is_refused_by_its_key(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(values)


def test_sets_are_of_the_labels_that_have_thresholds() -> None:
    assert FITTED.sets_of({"pathology": 0.3, "effusion": 0.9}) == {"pathology": ("present", "absent")}
    assert Reliability().sets_of({"pathology": 0.3}) == {}
