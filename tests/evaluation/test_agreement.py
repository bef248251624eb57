"""A draft against a reference, finding by finding: every way to agree and to differ."""

import numpy as np
import pytest

from vlm.evaluation.agreement import Agreement
from vlm.findings.labeller import chest

NAMES = chest().names

KINDS = ("true_positive", "hallucinated", "false_negative", "decided", "contradicted", "sided", "side_contradicted",
         "zoned", "zone_contradicted")  # fmt: skip
LEFT, RIGHT = "Opacity in the left lower zone.", "Opacity in the right lower zone."


@pytest.mark.parametrize(
    ("draft", "reference", "kinds"),
    [
        (LEFT, LEFT, "true_positive decided sided zoned"),
        (LEFT, RIGHT, "true_positive decided sided side_contradicted zoned"),
        (LEFT, "Opacity in the left upper zone.", "true_positive decided sided zoned zone_contradicted"),
        (LEFT, "Opacity in the left lung.", "true_positive decided sided"),
        ("Opacity.", LEFT, "true_positive decided"),
        (LEFT, "Opacity.", "true_positive decided"),
        (LEFT, "No opacity.", "hallucinated decided contradicted"),
        ("No opacity.", LEFT, "false_negative decided contradicted"),
        ("No opacity.", "No opacity.", "decided"),
        ("Possible opacity.", LEFT, "false_negative"),
        (LEFT, "Possible opacity.", ""),
        (LEFT, "The heart is normal.", "hallucinated"),
        ("The heart is normal.", LEFT, "false_negative"),
        ("The heart is normal.", "No opacity.", ""),
        ("No opacity.", "Possible opacity.", ""),
        ("Opacity in both lungs.", LEFT, "true_positive decided sided"),
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
