"""Explain a draft as far as it is quick: the source shares of each word, the heat map of each likely label.

Attributing a phrase to places and values takes minutes on a busy CPU and would hold up the drafts of all others;
`clinical-vlm draft --explain` does that.
"""

import importlib.util
from typing import Any

import cv2
import numpy as np

from vlm.app.view import png_link
from vlm.explanation.explain import explain_example
from vlm.explanation.result import Explanation, overlay
from vlm.inference.engine import Engine, Prepared, ReportEngine, merged_lora
from vlm.report import Report
from vlm.resources import render

MOST_MAPS = 6
LIKELY = 0.5
"""Probability from which a label's heat map is shown; the leading label's always is."""
FAINT = 0.3
"""Share below which a word is not tinted."""


def why_unexplainable(engine: Engine) -> str:
    """Return why this engine's drafts cannot be explained; empty if they can."""
    if not isinstance(engine, ReportEngine):
        return "only PyTorch's engine has gradients; use --engine torch"
    if engine.model.model_config.vitals.injection == "text":
        return "this adapter reads vitals as words, not as features"
    if engine.model.spec.study is not None:
        return "this adapter reads several images a case"
    if importlib.util.find_spec("captum") is None:
        return "captum is not installed; pip install 'clinical-vlm[explain]'"
    return ""


def explained(engine: Engine, prepared: Prepared, picture: np.ndarray | None, report: Report) -> Explanation:
    """Explain the words and the labels of a draft; `picture` is the square that the model saw, S × S uint8."""
    assert isinstance(engine, ReportEngine)
    shown = picture if prepared[0]["has_image"] else None
    with merged_lora(engine.model):
        return explain_example(engine.model, prepared[0], report, shown, spans=[])


def show(explanation: Explanation) -> str:
    """Render an explanation as HTML."""
    words = [_tinted(*word) for word in explanation.tinted_words()]
    return render("vlm.app", "explanation.html.j2", words=words, maps=_maps(explanation))


def _tinted(text: str, image: float, vitals: float, language: float) -> dict[str, Any]:
    source, share = max(("image", image), ("vitals", vitals), key=lambda pair: pair[1])
    return {"text": text, "source": source if share > FAINT else "", "share": round(50 * share)}


def _maps(explanation: Explanation) -> list[dict[str, str]]:
    """Render the heat maps of the likely labels over the image, the leading one's first."""
    if explanation.picture is None or explanation.leading_label is None:
        return []
    leading = explanation.leading_label.name
    names = [leading, *(label.name for label in explanation.labels if label.probability > LIKELY)]
    return [
        {
            "title": name.replace("_", " "),
            "alt": f"Heat of the label {name.replace('_', ' ')} over the image",
            "link": png_link(cv2.cvtColor(overlay(explanation, name), cv2.COLOR_RGB2BGR)),
        }
        for name in list(dict.fromkeys(names))[:MOST_MAPS]
    ]
