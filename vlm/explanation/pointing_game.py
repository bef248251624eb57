"""Measure whether heat maps point at the finding, on the built-in cohort, whose drawn opacities are known.

The pointing game (Zhang et al., 2018): a map hits where its maximum lies in the region, here the drawn opacity grown by
a margin, since a map is no finer than its cells. The baselines are a random point, another case's map, and the same
model with its weights shuffled (Adebayo et al., 2018).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.stats import binomtest

from vlm.atomic import replace_file
from vlm.config import DataConfig
from vlm.data.case import Example
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.phantom import load_phantom, opacity_masks
from vlm.data.study import PRIOR, roles_of
from vlm.errors import UserError, require
from vlm.explanation.attribution import CaseScorer, label_heats
from vlm.explanation.phrases import Span, finding_spans, token_spans, tokens_of
from vlm.explanation.result import resample_to_image
from vlm.findings.labeller import chest
from vlm.inference.engine import ReportEngine
from vlm.inference.lora_merge import merged_lora
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.progress import progress

LATERAL = "lateral"
LABEL, FINDING = "pathology", "opacity"
"""The label whose heat map is tested, and the finding whose words are."""


@dataclass(frozen=True)
class Case:
    """A case with a drawn opacity, and a draft that asserts one."""

    example: Example
    mask: np.ndarray
    """S × S, bool: the opacity's pixels in the square that the model sees."""
    draft: str
    words: Span
    """Span of the finding's words in the draft."""


@dataclass(frozen=True)
class Rate:
    """Hit rate of a map's maximum, with its exact (Clopper and Pearson, 1934) 95 % interval."""

    hits: int
    cases: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Rate":
        """Compute the rate of N cases."""
        interval = binomtest(sum(hits), len(hits)).proportion_ci(0.95)
        return cls(sum(hits), len(hits), float(interval.low), float(interval.high))

    def __str__(self) -> str:
        return f"{self.hits / self.cases:.3f} ({self.low:.3f} to {self.high:.3f})"


def find_cases(model: ClinicalVLM, data: DataConfig, split: str, most: int | None, max_new_tokens: int) -> list[Case]:
    """Select cases of a split whose image shows an opacity and whose draft asserts one, in the order of the table.

    Raises `UserError` for data without known finding masks, and for an adapter of other data.
    """
    if data.source != "phantom" or data.sources:
        raise UserError("data.source: only the built-in cohort (phantom) knows where its opacities are drawn")
    cohort = load_phantom(data)
    if (cohort.schema.names, cohort.labels) != (model.spec.schema.names, model.spec.labels):
        raise UserError("the adapter was trained on other vitals or labels than the built-in cohort has")
    dataset = CaseDataset(cohort.split(split), model.spec, cohort.sections)
    masks = opacity_masks(data.phantom, set(dataset.rows["id"]))
    every = (dataset[index] for index in range(len(dataset)))
    examples = [case for case in every if _begins_frontal(case, model) and masks[case["id"]].any()][:most]
    drafts = ReportEngine(model).draft(examples, max_new_tokens=max_new_tokens)
    cases = []
    for example, (draft, *_) in zip(examples, progress(drafts, "drafting", len(examples)), strict=True):
        found = chest().label(draft).get(FINDING)
        if found is not None and found.status == "present":
            size = (model.spec.image.size,) * 2
            mask = cv2.resize(masks[example["id"]].astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
            cases.append(Case(example, mask, draft, finding_spans(draft)[0]))
    return cases


def _begins_frontal(case: Example, model: ClinicalVLM) -> bool:
    """Check whether the first image of a case is a current frontal one, as the masks are."""
    first = roles_of(case["image_roles"].numpy(), model.spec.study)[0]
    return bool(case["has_image"]) and first.role not in (PRIOR, LATERAL)


def heats(model: ClinicalVLM, cases: Sequence[Case], title: str) -> dict[str, list[np.ndarray]]:
    """Map each method to the heat map of each case's first image, h × w: the frontal one, as the masks are."""
    maps: dict[str, list[np.ndarray]] = {"finding words": [], f"label {LABEL}": []}
    with merged_lora(model):
        for case in progress(cases, title):
            ids, places = token_spans(model.tokenizer, case.draft)
            scorer = CaseScorer(model, case.example, ids)
            maps["finding words"].append(scorer.heat(tokens_of(case.words, places))[0])
            maps[f"label {LABEL}"].append(label_heats(model, case.example)[model.spec.labels.index(LABEL)][0])
    return maps


def points_at(heat: np.ndarray, region: np.ndarray) -> bool:
    """Check whether a map's maximum (h × w) lies in a region (S × S); a map without positive values points nowhere."""
    shown = resample_to_image(heat, region.shape)
    return bool(shown.max() > 0 and region[np.unravel_index(int(shown.argmax()), shown.shape)])


def dilated(mask: np.ndarray, margin: int) -> np.ndarray:
    """Dilate a region by `margin` pixels; S × S."""
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(outside <= margin)


@torch.no_grad()
def margins(model: ClinicalVLM, heat: np.ndarray) -> dict[str, int]:
    """Map names to margins in pixels: none, a cell of the map, of the CNN's last grid, of the image tokens."""
    size, channels = model.spec.image.size, model.spec.image.channels
    last = model.vision.grid(torch.zeros(1, channels, size, size, device=model.device)).shape[-1]
    cells = {"map cell": len(heat), "last cell": last, "token cell": model.model_config.vision.grid}
    return {"as drawn": 0, **{name: size // count for name, count in cells.items()}}


def shuffle_weights(model: ClinicalVLM, seed: int = 0) -> None:
    """Shuffle the values of every tensor of the CNN, the projectors, the head and the LoRA."""
    generator = torch.Generator().manual_seed(seed)
    ours = set(model.trainable_parameters()) | {f"vision.cnn.{name}" for name, _ in model.vision.cnn.named_parameters()}
    for name, value in model.named_parameters():
        if name in ours:
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            value.data = value.data.flatten()[order].view_as(value)


def check(model: ClinicalVLM, cases: Sequence[Case]) -> dict[str, Any]:
    """Measure the hit rates of the trained model, of another case's map, and of shuffled weights.

    The model is left with shuffled weights. Raises `UserError` where no draft asserts an opacity.
    """
    if not cases:
        raise UserError("no draft asserts an opacity: there is nothing to point at")
    trained = heats(model, cases, "explaining")
    shuffle_weights(model)
    shuffled = heats(model, cases, "with shuffled weights")
    results: dict[str, Any] = {}
    for margin, pixels in margins(model, trained["finding words"][0]).items():
        regions = [dilated(case.mask, pixels) for case in cases]
        results[margin] = {
            "pixels": pixels,
            "a random point": float(np.mean([region.mean() for region in regions])),
            **{
                f"{method}{suffix}": asdict(Rate.of([*map(points_at, maps, regions)]))
                for method in trained
                for suffix, maps in (("", trained[method]), (", another case's", np.roll(trained[method], 1, axis=0)),
                                     (", shuffled weights", shuffled[method]))
            },
        }  # fmt: skip
    return {"cases": len(cases), "map": list(trained["finding words"][0].shape), "rates": results}


def table(results: dict[str, Any]) -> str:
    """Format the results: one line a map, one column a margin."""
    rates = results["rates"]
    names = [name for name in next(iter(rates.values())) if name != "pixels"]
    heads = [f"{margin} ({row['pixels']} px)" for margin, row in rates.items()]
    lines = ["".join([f"{'':<36}", *(f"{head:<26}" for head in heads)])]
    for name in names:
        cells = [row[name] if name == "a random point" else Rate(**row[name]) for row in rates.values()]
        shown = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append("".join([f"{name:<36}", *(f"{cell:<26}" for cell in shown)]).rstrip())
    return "\n".join(lines)


def check_adapter(
    adapter: str, data: str, split: str, most: int | None, output: Path, base: str | None, overrides: list[str]
) -> None:
    """Load, measure, print the table and write it as JSON; raises `UserError` as its parts do, and where it cannot."""
    from vlm.adapter import load
    from vlm.config.parsing import parse_config

    require("captum", "--explain: needs the package captum")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output: {output}: no such folder {output.parent}")
    config, _ = parse_config(["--config", data, *overrides])
    model = load(adapter, base=base)
    cases = find_cases(model, config.data, split, most, config.evaluation.max_new_tokens)
    results = {"split": split, "seed": config.data.phantom.seed, **check(model, cases)}
    replace_file(output, json.dumps(results, indent=2) + "\n")
    print(f"{len(cases)} {split} cases with a drawn opacity and a draft that asserts one", table(results), sep="\n")
