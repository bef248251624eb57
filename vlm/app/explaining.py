"""Explain a draft as far as it is quick: the source shares of each word, the heat map of each likely label.

Attributing a phrase to places and values takes minutes on a busy CPU and would hold up the drafts of all others;
`clinical-vlm draft --explain` does that.
"""

import importlib.util
from typing import Any

from vlm.app.view import png_link
from vlm.explanation.explain import explain_example, read_images
from vlm.explanation.result import Explanation, overlay
from vlm.inference.engine import Engine, Prepared, ReportEngine
from vlm.inference.lora_merge import merged_lora
from vlm.inference.study_images import Images
from vlm.report import Report
from vlm.resources import render

MOST_MAPS = 6
"""Most heat maps that are shown; more only where the leading label has one for each of more images."""
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
    if importlib.util.find_spec("captum") is None:
        return "captum is not installed; pip install 'clinical-vlm[explain]'"
    return ""


def explained(engine: Engine, prepared: Prepared, images: Images, report: Report) -> Explanation:
    """Explain the words and the labels of a draft; `images` are what it was prepared from, as squares (S × S uint8)."""
    assert isinstance(engine, ReportEngine)
    shown = [square for _, square in read_images(engine, images)]
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
    """Render the heat maps of the likely labels over each image, the leading label's first."""
    images = explanation.pictures
    if not images or explanation.leading_label is None:
        return []
    leading = explanation.leading_label.name
    names = [leading, *(label.name for label in explanation.labels if label.probability > LIKELY)]
    likely = list(dict.fromkeys(names))[: max(1, MOST_MAPS // len(images))]
    return [_map(explanation, name, place) for name in likely for place in range(len(images))]


def _map(explanation: Explanation, name: str, place: int) -> dict[str, str]:
    """Render the heat map of a label over one image, named where there are several."""
    label, role = name.replace("_", " "), explanation.pictures[place].name
    several = len(explanation.pictures) > 1
    return {
        "title": f"{label}: {role}" if several else label,
        "alt": f"Heat of the label {label} over the image{f' {role}' if several else ''}",
        "link": png_link(overlay(explanation, name, place)),
    }
