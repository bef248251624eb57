"""A draft against a reference, finding by finding: every way to agree and to differ."""

import numpy as np
import pytest

from vlm.evaluation.agreement import NAMES, Agreement

KINDS = ("right", "invented", "missed", "stated", "flipped", "sided", "side_flipped", "zoned", "zone_flipped")
LEFT, RIGHT = "Opacity in the left lower zone.", "Opacity in the right lower zone."


@pytest.mark.parametrize(
    ("draft", "reference", "kinds"),
    [
        (LEFT, LEFT, "right stated sided zoned"),
        (LEFT, RIGHT, "right stated sided side_flipped zoned"),
        (LEFT, "Opacity in the left upper zone.", "right stated sided zoned zone_flipped"),
        (LEFT, "Opacity in the left lung.", "right stated sided"),
        ("Opacity.", LEFT, "right stated"),
        (LEFT, "Opacity.", "right stated"),
        (LEFT, "No opacity.", "invented stated flipped"),
        ("No opacity.", LEFT, "missed stated flipped"),
        ("No opacity.", "No opacity.", "stated"),
        ("Possible opacity.", LEFT, "missed"),
        (LEFT, "Possible opacity.", ""),
        (LEFT, "The heart is normal.", "invented"),
        ("The heart is normal.", LEFT, "missed"),
        ("The heart is normal.", "No opacity.", ""),
        ("No opacity.", "Possible opacity.", ""),
        ("Opacity in both lungs.", LEFT, "right stated sided"),
    ],
)
def test_one_finding(draft: str, reference: str, kinds: str) -> None:
    found = Agreement.of([draft], [reference])
    place = NAMES.index("opacity")
    assert {name for name in KINDS if getattr(found, name)[0, place]} == set(kinds.split())


def test_rates_are_shares_of_where_an_error_could_be_made() -> None:
    drafts = [LEFT, LEFT, "No opacity.", "No opacity.", "Cardiomegaly. Opacity."]
    references = [LEFT, RIGHT, LEFT, "No opacity.", "No opacity. No cardiomegaly."]
    found, one = Agreement.of(drafts, references), np.ones((1, 5))
    assert {name: float(rate(one)[0]) for name, rate in found.rates().items()} == pytest.approx(
        {"hallucination_rate": 1 / 5, "miss_rate": 1 / 3, "negation_flip_rate": 3 / 6, "side_flip_rate": 1 / 2,
         "zone_flip_rate": 0.0}
    )  # fmt: skip
    assert found.precision()(one)[0] == 2 / 4 and found.recall()(one)[0] == 2 / 3
    assert found.f1()(one)[0] == pytest.approx(4 / 7)
    opacity, heart = NAMES.index("opacity"), NAMES.index("cardiomegaly")
    assert found.f1(opacity)(one)[0] == pytest.approx(4 / 6) and found.recall(opacity)(one)[0] == 2 / 3
    assert found.f1(heart)(one)[0] == 0 and found.precision(heart)(one)[0] == 0
    assert np.isnan(found.recall(heart)(one)[0]), "no reference has it"
