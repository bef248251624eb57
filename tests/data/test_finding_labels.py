"""Findings read from the reference reports become labels of the head."""

from dataclasses import replace

import numpy as np
import pytest

from vlm.config import Config
from vlm.data.ingest.finding_labels import add_finding_labels
from vlm.data.ingest.table import load_table
from vlm.errors import UserError
from vlm.training.run import train

WANTED = ["opacity", "left_opacity", "right_opacity", "lower_opacity"]


def test_a_report_says_what_is_there_and_silence_is_no(tiny_config: Config) -> None:
    data = replace(tiny_config.data, finding_labels=WANTED)
    cohort = add_finding_labels(load_table(data), data)
    assert cohort.labels == ("pathology", "effusion", *WANTED)
    expected = {
        "No opacity in either lung.": [0, 0, 0, 0],
        "Patchy opacities in the left lower zone.": [1, 1, 0, 1],
        "Mild infiltration in the right upper zone.": [1, 0, 1, 0],
        "": [np.nan] * 4,
    }
    rows = cohort.dataset
    for labels, sections, before in zip(
        rows["labels"], rows["sections"], load_table(data).dataset["labels"], strict=True
    ):
        np.testing.assert_array_equal(labels[:2], before)
        np.testing.assert_array_equal(labels[2:], expected[sections[0] or ""])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["opasity"], "'opasity' is no finding the labeller knows; did you mean 'opacity'"),
        (["left_"], "is no finding"),
        (["effusion"], "did you mean 'pleural_effusion'"),
        (["opacity", "opacity"], "'opacity' is a label already"),
    ],
)
def test_a_wrong_name_is_refused(names: list[str], message: str, tiny_config: Config) -> None:
    data = replace(tiny_config.data, finding_labels=names)
    with pytest.raises(UserError, match=message):
        add_finding_labels(load_table(data), data)


@pytest.mark.slow
def test_a_run_trains_and_tests_them(tiny_config: Config) -> None:
    from tests.conftest import read_json

    folder = train(replace(tiny_config, data=replace(tiny_config.data, finding_labels=WANTED)))
    assert list(read_json(folder / "metrics.json")["labels"]) == ["pathology", "effusion", *WANTED]
    assert read_json(folder / "adapter" / "config.json")["labels"] == ["pathology", "effusion", *WANTED]
