"""Drafts over HTTP in tests: what is asked, and the engine's own answer to hold the server's against."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vlm.inference.engine import ReportEngine

TOKENS = 6
VITALS: list[dict[str, Any]] = [
    {"glucose": 8.7, "bp": "145/90", "sex": "F"},
    {"glucose": "6,4", "systolic": 120},
    {"glu": 156.5, "sex": "male"},
    {},
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8))


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


def own_answer(engine: ReportEngine, folder: Path, image: bytes | None, vitals: dict[str, Any]) -> dict[str, Any]:
    """What the engine says by itself, from a file."""
    file = folder / "case.png"
    file.write_bytes(image or b"")
    return engine.predict([(file if image else None, vitals)], max_new_tokens=TOKENS)[0].to_dict()


def same(answer: dict[str, Any], own: dict[str, Any]) -> bool:
    """Probabilities of a batch may differ in the last places, also those in the table of findings."""
    return answer["probabilities"] == pytest.approx(own["probabilities"], abs=1e-5) and _words(answer) == _words(own)


def _words(answer: dict[str, Any]) -> dict[str, Any]:
    stated = [{**row, "probability": None} for row in answer["findings"]]
    return {**answer, "probabilities": None, "findings": stated}
