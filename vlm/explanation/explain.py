"""Make an `Explanation` from a case and its draft."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.data.case import Example
from vlm.data.images.image import Box, is_blank, read_image, resize, stretch_contrast
from vlm.data.images.square import Square
from vlm.data.study import PRIOR, StudySpec, roles_of, sorted_pictures
from vlm.errors import UserError, require
from vlm.explanation.attribution import TOLERANCE, CaseScorer, label_heats
from vlm.explanation.phrases import Span, decisive_spans, named_spans, token_spans, tokens_of, word_spans
from vlm.explanation.result import Attribution, ExplainedLabel, ExplainedWords, Explanation, ShownImage
from vlm.findings.labeller import Labeller
from vlm.inference.engine import Engine, ReportEngine
from vlm.inference.lora_merge import merged_lora
from vlm.inference.signal_input import Signal
from vlm.inference.study_images import Images, as_images, read_study
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.report import Report

LONGEST_SIDE = 1024
"""Longest side of the picture that is shown, pixels."""


def explain(
    engine: Engine | ClinicalVLM,
    images: Images,
    vitals: Mapping[str, Any] | None,
    report: Report | None = None,
    words: str = "",
    context: str = "",
    prior_report: str = "",
    signal: Signal = None,
) -> Explanation:
    """Explain a draft: the source shares of every word, and the heat maps and vitals of labels and chosen words.

    All but `report` and `words` are what `predict` was given, `report` what it gave; without it the case is drafted
    first. `words` are chosen as in `opacity, lower zone`; without them the findings, places and levels that the rules
    read in the draft are. Each of them takes 10 to 30 s of two CPU cores with the demo's model.

    Raises `UserError` as `predict` does, for words that the draft does not say, for an engine that is not PyTorch's,
    and where captum is not installed.
    """
    require("captum", "--explain: needs the package captum")
    if isinstance(engine, ClinicalVLM):
        engine = ReportEngine(engine)
    if not isinstance(engine, ReportEngine):
        raise UserError("--explain: only PyTorch's engine has gradients; use --engine torch")
    if engine.model.model_config.vitals.injection == "text":
        raise UserError("--explain: this adapter reads vitals as words (model.vitals.injection: text), not as features")
    prepared = engine.prepare(images, vitals, context, prior_report, signal)
    if report is None:
        report = next(engine.reports([prepared]))
    pictures = [shown_picture(engine, source, square) for source, square in read_images(engine, images)]
    spans = named_spans(report.text, words) if words.strip() else None
    with merged_lora(engine.model):
        return explain_example(engine.model, prepared[0], report, pictures, spans)


def explain_example(
    model: ClinicalVLM,
    example: Example,
    report: Report,
    pictures: Sequence[np.ndarray],
    spans: list[Span] | None = None,
) -> Explanation:
    """Explain a prepared case; the model is in evaluation mode.

    `pictures` are those to show, in the order of the example's images (see `read_images`); none without an image.
    """
    text, names = report.text, model.spec.schema.names
    ids, places = token_spans(model.tokenizer, text)
    if spans is None:
        given = {name: float(v) for name, v in zip(names, example["vitals"], strict=True) if not np.isnan(v)}
        spans = decisive_spans(text, given, model.spec.schema, Labeller.of_adapter(model.spec.findings))
    passages: tuple[ExplainedWords, ...] = ()
    words: tuple[Attribution, ...] = ()
    if ids:
        scorer = CaseScorer(model, example, ids)
        words = tuple(Attribution(*span, *scorer.shapley(tokens_of(span, places))) for span in word_spans(text))
        passages = tuple(_passage(scorer, span, text, places, names) for span in spans)
    labels = _labels(model, example, report)
    roles = image_names(example, model.spec.study) if example["has_image"] else []
    shown = tuple(ShownImage(name, picture) for name, picture in zip(roles, pictures, strict=True))
    return Explanation(report, shown, words, passages, labels, names, _notes(example, passages, names))


def _passage(scorer: CaseScorer, span: Span, text: str, places: list[Span], names: tuple[str, ...]) -> ExplainedWords:
    tokens = tokens_of(span, places)
    parts = scorer.parts(tokens)
    return ExplainedWords(
        *span,
        image=float(parts.cells.sum()),
        vitals=float(parts.vitals.sum()),
        alone=parts.alone,
        text=text[slice(*span)],
        cells=parts.cells if scorer.has_image else None,
        heat=scorer.heat(tokens) if scorer.has_image else None,
        by_vital=dict(zip(names, parts.vitals.tolist(), strict=True)),
        completeness_error=parts.error,
        steps=parts.steps,
    )


def _labels(model: ClinicalVLM, example: Example, report: Report) -> tuple[ExplainedLabel, ...]:
    heats = label_heats(model, example) if example["has_image"] else [None] * len(model.spec.labels)
    rows = zip(model.spec.labels, heats, strict=True)
    return tuple(ExplainedLabel(name, report.probabilities[name], heat) for name, heat in rows)


def _notes(example: Example, passages: tuple[ExplainedWords, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if not example["has_image"]:
        notes.append("no image was read: there is nothing to lay a heat over")
    if names and bool(np.isnan(example["vitals"]).all()):
        notes.append("no vitals were given")
    if "signal" in example and not bool(example["signal"].isnan().all()):
        notes.append("a signal was read; it is shown throughout, so what it says counts for no part")
    if not passages:
        notes.append("the draft has no word that the rules read; choose words with --explain_words")
    for words in passages:
        if words.completeness_error > TOLERANCE:
            notes.append(
                f"{words.text!r}: completeness error {words.completeness_error:.1%} after {words.steps} steps, "
                f"more than {TOLERANCE:.0%}: do not rely on its parts"
            )
    return tuple(notes)


def image_names(example: Example, study: StudySpec | None) -> list[str]:
    """Name the n images of a case by their roles, as `PA`, `lateral` or `prior PA, 30 days`; each name stands once."""
    seen: Counter[str] = Counter()
    names = []
    for role in roles_of(example["image_roles"].numpy(), study):
        name = f"{PRIOR} {role.view}".strip() if role.prior else role.view or "image"
        if role.prior and not np.isnan(role.days):
            name += f", {role.days:g} day{'' if role.days == 1 else 's'}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return names


def read_images(engine: Engine, images: Images) -> list[tuple[str | Path | Square | np.ndarray, np.ndarray]]:
    """List the images of a case in the order of its example, without blank ones: each as given and as its square.

    Raises `UserError` as `read_study` does.
    """
    pictures, _ = read_study(images, engine.model.spec, engine.read_picture)
    given = {id(picture): item.image for picture, item in zip(pictures, as_images(images), strict=True)}
    return [(given[id(item)], item.picture) for item in sorted_pictures(p for p in pictures if not is_blank(p.picture))]


def shown_picture(engine: Engine, image: str | Path | Square | np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return the image with the model's contrast, in its own aspect ratio and no larger than a screen.

    H × W uint8, or H × W × 3 in colour. An image that was given as its square is shown as that.
    """
    if not isinstance(image, str | Path):
        return square
    spec = engine.model.spec.image
    stretched = stretch_contrast(read_image(image, spec.in_color), spec)
    shape = stretched.shape[:2]
    box = Box.of(shape, min(LONGEST_SIDE, max(shape)))
    return resize(stretched, box.height, box.width)
