"""What a model is held against, by value: the nearest training case, the strongest constant report, nobody's image."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import torch

from vlm.evaluation.baselines import constant_report, image_features, nearest_reports
from vlm.evaluation.evidence_parts import choose_donors


class Pictures:
    """Cases with pixels of one value for each channel; an empty report is none."""

    def __init__(self, colours: list, reports: list[str], has_image: list[bool] | None = None) -> None:
        self.colours, self.reports = torch.tensor(colours), reports
        self.has_image = has_image or [True] * len(reports)
        self.rows = {"sections": [[report] if report else [] for report in reports]}

    def __len__(self) -> int:
        return len(self.reports)

    def __getitem__(self, index: int) -> dict:
        pixels = self.colours[index][:, None, None].expand(1, 2, 4, 4)
        return {"pixel_values": pixels, "has_image": self.has_image[index]}

    def report(self, index: int) -> str:
        return self.reports[index]


PLAIN = SimpleNamespace(
    device=torch.device("cpu"), eval=lambda: None, autocast=nullcontext, vision=SimpleNamespace(grid=lambda x: x)
)


def test_the_nearest_is_nearest_in_direction_and_has_a_report() -> None:
    train = Pictures([[1.0, 0], [0, 9.0], [2.0, 2.0], [0, 1.0]], ["right", "", "between", "up"])
    asked = Pictures([[5.0, 0.1], [0.1, 3], [0.03, 0.02], [7.0, 0]], ["x"] * 4, [True, True, True, False])
    np.testing.assert_allclose(image_features(PLAIN, train, 3), [[1, 0], [0, 1], [0.5**0.5] * 2, [0, 1]], atol=1e-6)
    features = image_features(PLAIN, asked, 2)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert nearest_reports(PLAIN, train, asked, 2)[:3] == ["right", "up", "between"]


def test_the_strongest_constant_report() -> None:
    normal, opacity, both = "Clear lungs.", "Opacity.", "Opacity. Cardiomegaly."
    assert constant_report([normal] * 3 + [opacity, both]) == opacity  # F1 4/8; of both findings 6/13
    assert constant_report([normal, opacity] + [both] * 3) == both  # F1 14/17; of one 8/12
    open_twice = ["Cardiomegaly.", opacity, "Possible opacity.", "Possible opacity."]
    assert constant_report(open_twice) == opacity, "what a reference leaves open is not invented"
    assert constant_report(["No opacity.", normal, normal]) == normal and constant_report(["", ""]) == ""


def test_nobody_is_minus_one() -> None:
    """Else a case without an image would be another case when its image is withheld, and drafted again."""
    has, patients = np.array([True, False, True]), np.array([0, 1, 0])
    assert choose_donors(has, patients, "own", 0).tolist() == [0, -1, 2]
    for shown in ("none", "blank", "swapped"):  # all images are of one patient
        assert choose_donors(has, patients, shown, 0).tolist() == [-1, -1, -1]
