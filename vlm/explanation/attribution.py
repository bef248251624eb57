"""Attribute a word's log-probability to parts of the evidence, and map where in the image a word comes from.

Every word is scored on four inputs that a model was trained on: everything given, all images withheld, the vitals
withheld, nothing given. The contributions of images and vitals are Shapley values (Shapley, 1953) over these four,
exact and for all words at once.

Chosen words are divided further by integrated gradients (Sundararajan et al., 2017), from the model's own learned
"missing" embeddings to the given evidence, among the cells of the CNN's last grid of each image and the vitals: through
image tokens, vitals tokens, z and the label token. Integration is over features, not over raw values: those have jumps
at the limits of a reference range. An image keeps its role along the path, so that a study keeps its tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from vlm.data.case import Example, make_example
from vlm.data.collate import Collator, batch_roles
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.encoders.signal_encoder import with_signal

TOLERANCE = 0.01
"""Largest completeness error, as a share of the evidence's contribution."""
SMALLEST = 0.1
"""Smallest contribution that the error is divided by, nats; below it, the error is a share of this."""
POINTS = 6
"""Points of Gauss-Legendre quadrature on an interval of a path."""
FIRST_ENDS = (0.0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
MOST_STEPS = 240
PASS_TOKENS = 1024
"""Tokens in a forward pass."""

Evidence = tuple[torch.Tensor, ...]
"""The CNN's grids of n images (B × n × C × h × w), then features and state of each vital (B × X_i)."""
Corner = tuple[bool, bool]
"""(images given, vitals given)."""


@dataclass(frozen=True)
class Parts:
    """Attributions of one span of the draft, in nats."""

    cells: np.ndarray
    """n × h × w, the CNN's last grid of each image; adds up to the images' contribution."""
    vitals: np.ndarray
    """m; adds up to the vitals' contribution."""
    alone: float
    """f(missing): the log-probability at the beginning of the path, with nothing in each image's place."""
    error: float
    """Completeness error: |sum of attributions − (f(given) − f(missing))|, as a share of the latter."""
    steps: int
    """Number of points on the path."""


class CaseScorer:
    """Score the tokens of one draft by log-probability, as a function of the evidence of one case."""

    def __init__(self, model: ClinicalVLM, example: Example, draft: Sequence[int]) -> None:
        """Read the prompt of a case; `draft` are the T tokens of the draft. The model must be in evaluation mode."""
        self.model, self.draft = model, torch.tensor([list(draft)], dtype=torch.long, device=model.device)  # 1 × T
        self.example = example
        batch = Collator(model.prompt, generation=True)([example])
        self.pixels = batch["pixel_values"].to(model.device)
        self.has_image = bool(example["has_image"])
        self.has_vitals = not bool(torch.isnan(example["vitals"]).all())
        mask = batch["evidence_mask"]
        self.prompt_length = mask.shape[1]
        self.ids = torch.cat([batch["input_ids"].to(model.device), self.draft], dim=1)
        self.mask = torch.cat([mask, mask.new_zeros(self.draft.shape)], dim=1).to(model.device)
        with torch.no_grad(), model.autocast():
            self.roles = batch["image_roles"].to(model.device)  # n × 4
            self.signals = batch["signals"].to(model.device) if "signals" in batch else None  # shown in every corner
            grid = model.vision.grid(self.pixels)[None]  # 1 × n × C × h × w
            absent = model.vision.missing.detach().view(1, 1, -1, 1, 1).to(grid.dtype).expand_as(grid)
            self.given = (grid if self.has_image else absent, *self._read(example["vitals"]))
            self.missing = (absent, *self._read(torch.full_like(example["vitals"], float("nan"))))

    def _read(self, vitals: torch.Tensor) -> Evidence:
        return tuple(torch.cat(pair, dim=1) for pair in self.model.vitals.read(vitals[None].to(self.model.device)))

    def log_probabilities(self, evidence: Evidence, tokens: range) -> torch.Tensor:
        """Return log-probabilities of some tokens of the draft, given the draft before them; B × t, float32."""
        logits, wanted = self._logits(evidence, tokens)
        return logits.log_softmax(dim=-1).gather(2, wanted)[..., 0]

    def heat(self, tokens: range) -> np.ndarray:
        """Map where in each image some tokens come from, against all else that could be said of it; see `grid_heat`.

        The score is their log-odds, as a label's logit is: nearly certain words have no gradient in their probability.
        """
        grid = self.given[0].clone().requires_grad_()
        logits, wanted = self._logits((grid, *self.given[1:]), tokens)
        others = logits.scatter(2, wanted, float("-inf")).logsumexp(dim=-1)
        odds = (logits.gather(2, wanted)[..., 0] - others).sum()
        return grid_heat(self.model, self.pixels, torch.autograd.grad(odds, grid)[0][0])

    def _logits(self, evidence: Evidence, tokens: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vocabulary's logits at some tokens (B × t × V, float32), and the tokens (B × t × 1)."""
        model, start, end = self.model, self.prompt_length + tokens.start, self.prompt_length + tokens.stop
        rows = len(evidence[0])
        with model.autocast():
            shown = self._evidence_tokens(evidence)
            ids, mask = (row[:, : end - 1].expand(rows, -1) for row in (self.ids, self.mask))
            read = model.base.base_model(inputs_embeds=model.embed(ids, mask, shown), use_cache=False)
            states = read.last_hidden_state[:, start - 1 :]  # B × t × H; each predicts the token after it
            logits = model.vocabulary_head(states.flatten(0, 1)).float().unflatten(0, states.shape[:2])
        return logits, self.ids[:, start:end, None].expand(rows, -1, -1)

    def _evidence_tokens(self, evidence: Evidence) -> torch.Tensor:
        """Encode evidence into tokens, B × P × H, differentiable along every path."""
        model, (grid, *vitals) = self.model, evidence
        rows, images = grid.shape[:2]
        roles = self.roles.repeat(rows, 1)  # B·n × 4
        roles[:, 0] = torch.arange(rows, device=grid.device).repeat_interleave(images)
        there = torch.ones(rows, dtype=torch.bool, device=grid.device)
        image = model.vision(model.vision.pool(grid.flatten(0, 1)), there, roles)
        if vitals:
            sizes = [value.size for value in model.vitals.values]
            pairs = [(x[:, :size], x[:, size:]) for x, size in zip(vitals, sizes, strict=True)]
            values = model.vitals.combine(pairs)
        else:
            values = model.vitals(grid.new_zeros(rows, 0))
        signals = None if self.signals is None else self.signals.expand(rows, -1, -1)
        return model.fuse(image, with_signal(values, model.signal, signals), whole=True).flat()

    # ------------------------------------------------------------------------------------ four corners

    def _at(self, image: bool, vitals: bool) -> Evidence:
        """Return the evidence of a corner."""
        grid, values = (self.given if image else self.missing)[:1], (self.given if vitals else self.missing)[1:]
        return *grid, *values

    @cached_property
    def withheld(self) -> "CaseScorer":
        """Score the case as the model reads it without any image: itself, unless images have roles of their own."""
        if self.model.spec.study is None or not self.has_image:
            return self
        nothing = make_example(self.model.spec, [], self.example["vitals"].numpy(), context=self.example["context"])
        nothing |= {name: self.example[name] for name in ("signal",) if name in self.example}
        same = torch.equal(nothing["image_roles"], self.example["image_roles"])
        return self if same else CaseScorer(self.model, nothing, self.draft[0].tolist())

    @cached_property
    def corners(self) -> dict[Corner, np.ndarray]:
        """Map (images, vitals) given or not to each token's log-probability, T; the same for evidence absent anyway."""
        distinct = sorted({(i and self.has_image, v and self.has_vitals) for i in (False, True) for v in (False, True)})
        known: dict[Corner, np.ndarray] = {}
        for scorer in dict.fromkeys((self.withheld, self)):
            keys = [key for key in distinct if (self if key[0] else self.withheld) is scorer]
            known |= scorer._score_corners(keys)
        return {
            (i, v): known[i and self.has_image, v and self.has_vitals] for i in (False, True) for v in (False, True)
        }

    def _score_corners(self, keys: Sequence[Corner]) -> dict[Corner, np.ndarray]:
        """Score some corners in one pass."""
        if not keys:
            return {}
        evidence = tuple(torch.cat(parts) for parts in zip(*(self._at(*key) for key in keys), strict=True))
        with torch.no_grad():
            rows = self.log_probabilities(evidence, range(self.draft.shape[1])).double().cpu().numpy()
        return dict(zip(keys, rows, strict=True))

    def shapley(self, tokens: range) -> tuple[float, float, float]:
        """Return what images and vitals each add to some tokens' log-probability, and its value with neither; nats."""
        score = {key: float(row[tokens.start : tokens.stop].sum()) for key, row in self.corners.items()}
        image = (score[True, False] - score[False, False] + score[True, True] - score[False, True]) / 2
        vitals = (score[False, True] - score[False, False] + score[True, True] - score[True, False]) / 2
        return image, vitals, score[False, False]

    # ----------------------------------------------------------------------------- integrated gradients

    def parts(self, tokens: range) -> Parts:
        """Attribute the evidence's contribution to some tokens of the draft to its parts.

        The straight path is integrated in intervals, short at its beginning: a layer norm turns quickly on the way out
        of a near-zero vector, as a learned "missing" may be. The interval with the largest error is split until the
        total error is less than `TOLERANCE`, or there are `MOST_STEPS` points.
        """
        path = _Path(lambda *evidence: self.log_probabilities(evidence, tokens).sum(dim=1), self.given, self.missing,
                     max(1, PASS_TOKENS // (self.prompt_length + tokens.stop)))  # fmt: skip
        intervals = [path.integrate(*ends) for ends in pairwise(FIRST_ENDS)]
        change = max(abs(path.score(1) - path.score(0)), SMALLEST)
        while abs(missed := sum(part.missed for part in intervals)) > TOLERANCE * change:
            if (len(intervals) + 1) * POINTS > MOST_STEPS:
                break
            worst = max(intervals, key=lambda part: abs(part.missed))
            intervals.remove(worst)
            middle = (worst.start * worst.end) ** 0.5 or worst.end / 8
            intervals += [path.integrate(worst.start, middle), path.integrate(middle, worst.end)]
        image, *vitals = [sum(parts).double().cpu() for parts in zip(*(s.added for s in intervals), strict=True)]
        values = np.array([float(part.sum()) for part in vitals])
        cells = image.sum(dim=(0, 2)).numpy()  # 1 × n × C × h × w → n × h × w
        return Parts(cells, values, path.score(0), abs(missed) / change, POINTS * len(intervals))


@dataclass(frozen=True)
class _Interval:
    """An interval of a path of integration."""

    start: float
    """Share of the path: 0 at its beginning, 1 at its end."""
    end: float
    added: Evidence
    """Attribution of each number of the evidence, nats."""
    missed: float
    """Error of their sum, nats; positive where it is too large."""


class _Path:
    """Integrated gradients of a score along the straight path from missing to given evidence, interval by interval."""

    def __init__(self, score: Callable[..., torch.Tensor], given: Evidence, missing: Evidence, rows: int) -> None:
        """Set the score and both ends; `rows` points are in a batch."""
        from captum.attr import IntegratedGradients

        self.gradients = IntegratedGradients(score)
        self.function, self.given, self.missing, self.rows = score, given, missing, rows
        self.scores: dict[float, float] = {}

    def integrate(self, start: float, end: float) -> _Interval:
        """Integrate from one share of the path to another."""
        added = self.gradients.attribute(
            self._at(end), self._at(start), n_steps=POINTS, method="gausslegendre", internal_batch_size=self.rows
        )
        added = tuple(part.detach() for part in added)
        total = sum(float(part.double().sum()) for part in added)
        return _Interval(start, end, added, total - (self.score(end) - self.score(start)))

    def score(self, share: float) -> float:
        """Score the evidence at a share of the path."""
        if share not in self.scores:
            with torch.no_grad():
                self.scores[share] = float(self.function(*self._at(share)))
        return self.scores[share]

    def _at(self, share: float) -> Evidence:
        return tuple(old + share * (new - old) for old, new in zip(self.missing, self.given, strict=True))


# ----------------------------------------------------------------------------------------------- where


def label_heats(model: ClinicalVLM, example: Example) -> list[np.ndarray]:
    """Map where in its n images each label's logit comes from; K times n maps as `grid_heat` gives them."""
    pixels, vitals = example["pixel_values"].to(model.device), example["vitals"][None].to(model.device)
    roles = batch_roles([example]).to(model.device)
    with model.autocast():
        with torch.no_grad():
            grid = model.vision.grid(pixels)
        grid.requires_grad_()
        there = torch.ones(1, dtype=torch.bool, device=model.device)
        signals = example["signal"][None].to(model.device) if "signal" in example else None
        clinical = with_signal(model.vitals(vitals), model.signal, signals)
        logits = model.fuse(model.vision(model.vision.pool(grid), there, roles), clinical).logits[0]
        slopes = [torch.autograd.grad(logit, grid, retain_graph=True)[0] for logit in logits]
    return [grid_heat(model, pixels, slope) for slope in slopes]


def grid_heat(model: ClinicalVLM, pixels: torch.Tensor, slope: torch.Tensor) -> np.ndarray:
    """Map where in n images a linear function of the CNN's last grids comes from; n × h × w, signed, without a unit.

    `slope` is n × C × h × w. HiResCAM (Draelos and Carin, 2020), gradient times feature summed over the channels, on
    the last stage of twice the last grid's resolution. The last grid itself is coarse: its cells see nearly the whole
    image, and their heat lies beside the region that causes it (see docs/explanation.md).
    """
    if not model.vision.encoder.halves:  # a transformer's grid is fine: a cell is a patch of the image
        with model.autocast(), torch.no_grad():
            return (model.vision.grid(pixels) * slope).sum(dim=1).double().cpu().numpy()
    from captum.attr import LayerGradientXActivation

    def score(images: torch.Tensor) -> torch.Tensor:
        return (model.vision.grid(images) * slope).sum(dim=(1, 2, 3))

    with model.autocast():
        found = LayerGradientXActivation(score, finer_stage(model.vision.cnn)).attribute(pixels.clone())
    return found.detach().sum(dim=1).double().cpu().numpy()


def finer_stage(cnn: nn.Module) -> nn.Module:
    """Return the last layer of a timm CNN before its last halving; the CNN itself where it does not tell its stages."""
    stages = list(getattr(cnn, "feature_info", None) or [])
    finer = [stage["module"] for stage in stages if stage["reduction"] < stages[-1]["reduction"]]
    return cnn.get_submodule(finer[-1]) if finer else cnn
