"""How much each part of the evidence adds to a word's log-probability, and where a label's logit comes from.

A word is judged on four inputs that a model was trained on: everything given, the image withheld, the vitals
withheld, nothing given. What image and vitals add is their Shapley value (Shapley, 1953) over these four, exact and
of every word in one pass. Integrated gradients (Sundararajan et al., 2017) divide it among the cells of the CNN's last
grid and among the vitals. They go from the model's own learned "missing" to what is given: through image tokens, vitals
tokens, z and the label token. Integration is over features, not over raw values: those have jumps at the limits of a
reference range.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vlm.data.case import Example
from vlm.data.collate import Collator
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM

TOLERANCE = 0.01
"""Largest completeness error, as a share of what the evidence adds."""
SMALLEST = 0.1
"""Nats; where the evidence adds less, the error is a share of this."""
MOST_STEPS = 256
PASS_TOKENS = 1024
"""Tokens read at once."""

Evidence = tuple[torch.Tensor, ...]
"""The CNN's grid (B × C × h × w), then features and state of each vital (B × X_i)."""
Corner = tuple[bool, bool]
"""Whether the image is given, and whether the vitals are."""


@dataclass(frozen=True)
class Parts:
    """What one stretch of the draft drew on, in nats."""

    heat: np.ndarray
    """h × w; adds up to what the image adds."""
    vitals: np.ndarray
    """m; adds up to what the vitals add."""
    error: float
    """Completeness error: a bound on |sum of attributions − (f(given) − f(missing))|, as a share of the latter."""
    steps: int
    """Most points on any of the paths."""


def require_captum() -> None:
    """Raises `UserError` where the library is missing."""
    try:
        import captum  # noqa: F401
    except ImportError:
        raise UserError('--explain: needs the package captum; pip install "clinical-vlm[explain]"') from None


class CaseScorer:
    """Log-probabilities of the tokens of one draft, as a function of the evidence of one case."""

    def __init__(self, model: ClinicalVLM, example: Example, draft: Sequence[int]) -> None:
        """`draft` are the T tokens of the draft; the model must be in evaluation mode."""
        self.model, self.draft = model, torch.tensor([list(draft)], dtype=torch.long, device=model.device)  # 1 × T
        batch = Collator(model.prompt, generation=True)([example])
        self.pixels = batch["pixel_values"].to(model.device)
        self.has_image = bool(example["has_image"])
        self.has_vitals = not bool(torch.isnan(example["vitals"]).all())
        mask = batch["evidence_mask"]
        self.prompt_length = mask.shape[1]
        self.ids = torch.cat([batch["input_ids"].to(model.device), self.draft], dim=1)
        self.mask = torch.cat([mask, mask.new_zeros(self.draft.shape)], dim=1).to(model.device)
        with torch.no_grad(), model.autocast():
            grid = model.vision.grid(self.pixels)
            absent = model.vision.missing.view(1, -1, 1, 1).to(grid.dtype).expand_as(grid)
            self.given = (grid if self.has_image else absent, *self._read(example["vitals"]))
            self.missing = (absent, *self._read(torch.full_like(example["vitals"], float("nan"))))

    def _read(self, vitals: torch.Tensor) -> Evidence:
        return tuple(torch.cat(pair, dim=1) for pair in self.model.vitals.read(vitals[None].to(self.model.device)))

    def log_probabilities(self, evidence: Evidence, tokens: range) -> torch.Tensor:
        """Those of some tokens of the draft, given the draft before them; B × n, float32."""
        model, start, end = self.model, self.prompt_length + tokens.start, self.prompt_length + tokens.stop
        rows = len(evidence[0])
        with model.autocast():
            shown = self._evidence_tokens(evidence)
            ids, mask = (row[:, : end - 1].expand(rows, -1) for row in (self.ids, self.mask))
            read = model.base.base_model(inputs_embeds=model.embed(ids, mask, shown), use_cache=False)
            states = read.last_hidden_state[:, start - 1 :]  # B × n × H; the state at t predicts the token at t + 1
            logits = model.base.get_output_embeddings()(states).float()
        wanted = self.ids[:, start:end].expand(rows, -1)
        return logits.log_softmax(dim=-1).gather(2, wanted[..., None])[..., 0]

    def _evidence_tokens(self, evidence: Evidence) -> torch.Tensor:
        """B × P × H, differentiable along every path."""
        model, (grid, *vitals) = self.model, evidence
        image = model.vision(model.vision.pool(grid), torch.ones(len(grid), dtype=torch.bool, device=grid.device))
        if vitals:
            sizes = [value.size for value in model.vitals.values]
            pairs = [(x[:, :size], x[:, size:]) for x, size in zip(vitals, sizes, strict=True)]
            values = model.vitals.combine(pairs)
        else:
            values = model.vitals(grid.new_zeros(len(grid), 0))
        return model.fuse(image, values, whole=True).tokens

    # ------------------------------------------------------------------------------------ four corners

    def at(self, image: bool, vitals: bool) -> Evidence:
        """The evidence of a corner."""
        grid, values = (self.given if image else self.missing)[:1], (self.given if vitals else self.missing)[1:]
        return *grid, *values

    @cached_property
    def corners(self) -> dict[Corner, np.ndarray]:
        """(image, vitals) given or not → log-probability of each token, T. What is not given anyway is not withheld."""
        distinct = sorted({(i and self.has_image, v and self.has_vitals) for i in (False, True) for v in (False, True)})
        evidence = tuple(torch.cat(parts) for parts in zip(*(self.at(*key) for key in distinct), strict=True))
        with torch.no_grad():
            rows = self.log_probabilities(evidence, range(self.draft.shape[1])).double().cpu().numpy()
        known = dict(zip(distinct, rows, strict=True))
        return {
            (i, v): known[i and self.has_image, v and self.has_vitals] for i in (False, True) for v in (False, True)
        }

    def shapley(self, tokens: range) -> tuple[float, float, float]:
        """What image and vitals add to the log-probability of some tokens, and what it is with nothing given; nats."""
        score = {key: float(row[tokens.start : tokens.stop].sum()) for key, row in self.corners.items()}
        image = (score[True, False] - score[False, False] + score[True, True] - score[False, True]) / 2
        vitals = (score[False, True] - score[False, False] + score[True, True] - score[True, False]) / 2
        return image, vitals, score[False, False]

    # ----------------------------------------------------------------------------- integrated gradients

    def parts(self, tokens: range, most_steps: int = MOST_STEPS, vitals: bool = True) -> Parts:
        """Divide what image and vitals add to some tokens of the draft; without `vitals` the image's part alone.

        Image and vitals are each brought in twice, with the other given and with the other missing, and the two are
        averaged, as their Shapley value is.
        """
        change = max(abs(sum(self.shapley(tokens)[:2])), SMALLEST)
        heat, values = np.zeros(self.given[0].shape[2:]), np.zeros(len(self.given) - 1)
        error, most = 0.0, 0
        for start, end in self._legs(vitals):
            cells, missed, steps = self._path(tokens, start, end, TOLERANCE * change / 2, most_steps)
            if start[0] != end[0]:
                heat += cells[0].sum(axis=(0, 1)) / 2
            else:
                values += np.array([part.sum() for part in cells]) / 2
            error, most = error + missed / 2, max(most, steps)
        return Parts(heat, values, error / change, most)

    def _legs(self, vitals: bool) -> list[tuple[Corner, Corner]]:
        """The paths to integrate along; what is missing moves nothing."""
        image = [((False, other), (True, other)) for other in (False, True)] if self.has_image else []
        values = [((other, False), (other, True)) for other in (False, True)] if self.has_vitals and vitals else []
        return image + values

    def _path(
        self, tokens: range, start: Corner, end: Corner, allowed: float, most_steps: int
    ) -> tuple[list[np.ndarray], float, int]:
        """Attributions to the parts that differ between two corners, their completeness error in nats, and the steps.

        Steps are doubled until the error is allowed, or there are `most_steps`.
        """
        from captum.attr import IntegratedGradients

        image = start[0] != end[0]
        given, missing = self.at(*end), self.at(*start)
        moving = slice(0, 1) if image else slice(1, None)

        def score(*moved: torch.Tensor) -> torch.Tensor:
            fixed = given[1:] if image else given[:1]
            still = tuple(part.expand(len(moved[0]), *part.shape[1:]) for part in fixed)
            return self.log_probabilities((*moved, *still) if image else (*still, *moved), tokens).sum(dim=1)

        places = slice(tokens.start, tokens.stop)
        difference = float((self.corners[end][places] - self.corners[start][places]).sum())
        rows = max(1, PASS_TOKENS // (self.prompt_length + tokens.stop))
        steps = 8
        while True:
            found = IntegratedGradients(score).attribute(
                given[moving], missing[moving], n_steps=steps, method="gausslegendre", internal_batch_size=rows
            )
            cells = [part.detach().double().cpu().numpy() for part in found]
            error = abs(sum(part.sum() for part in cells) - difference)
            if error <= allowed or steps >= most_steps:
                return cells, error, steps
            steps *= 2


# ---------------------------------------------------------------------------------------------- labels


def label_heat(model: ClinicalVLM, example: Example) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., 2017) of each label's logit on the CNN's last grid; K × h × w, at least 0."""
    from captum.attr import LayerGradCam

    pixels, vitals = (example[name][None].to(model.device) for name in ("pixel_values", "vitals"))

    def logits(image: torch.Tensor) -> torch.Tensor:
        there = torch.ones(len(image), dtype=torch.bool, device=image.device)
        return model.encode(image, there, vitals.expand(len(image), -1)).logits

    cam: Callable[..., torch.Tensor] = LayerGradCam(logits, model.vision.cnn).attribute
    with model.autocast():
        maps = [cam(pixels, target=k, relu_attributions=True)[0, 0] for k in range(len(model.spec.labels))]
    return np.stack([heat.detach().float().cpu().numpy() for heat in maps]) if maps else np.zeros((0, 1, 1))
