"""Find a repeated event in a signal, such as the heart beat: its rate, how regular it is, and its mean shape.

The rule is fixed and has no weights: an event is the largest slope of all channels together within the shortest
period, as in the detectors of QRS complexes (Pan and Tompkins, 1985). So the rate comes from the samples alone, and a
few hundred cases need not teach it.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

POINTS = 80
"""Points of the mean shape of an event: one shortest period before it to two after."""
FEWEST_SAMPLES = 4
"""Fewest samples of the shortest period."""
THRESHOLD, QUANTILE = 0.35, 0.98
"""An event's slope is above this share of this quantile of the slopes."""


class Cycles(NamedTuple):
    """Events of B signals."""

    rate: torch.Tensor
    """Events a minute, B; NaN for fewer than two."""
    variation: torch.Tensor
    """Standard deviation of the intervals as a share of their mean, B; NaN for fewer than three events."""
    shape: torch.Tensor
    """Median shape of the event, B × C × POINTS, above the median of the channel; 0 without an event."""


class CycleFinder(nn.Module):
    """Find the events of signals of `samples_a_second`, between `lowest` and `highest` a minute."""

    window: torch.Tensor

    def __init__(self, samples_a_second: float, lowest: float, highest: float) -> None:
        super().__init__()
        self.samples_a_minute, self.lowest, self.highest = 60 * samples_a_second, lowest, highest
        self.shortest = int(self.samples_a_minute / highest)
        window = torch.hann_window(2 * (self.shortest // 5) + 3, periodic=False)[1:-1]  # odd: a peak stays in its place
        self.register_buffer("window", window / window.sum(), persistent=False)

    @torch.no_grad()
    def forward(self, signals: torch.Tensor) -> Cycles:
        """Find the events of signals (B × C × L, NaN at gaps)."""
        signals = signals.float()
        slopes = self.slopes(signals)
        reach = self.shortest
        largest = F.max_pool1d(slopes[:, None], 2 * reach + 1, 1, reach)[:, 0]  # B × L
        rises = slopes > F.pad(slopes, (1, 0))[:, :-1]
        above = slopes > THRESHOLD * slopes.quantile(QUANTILE, dim=1, keepdim=True)
        events = (slopes == largest) & rises & above
        return Cycles(*map(torch.stack, zip(*map(self._describe, signals, events), strict=True)))

    def slopes(self, signals: torch.Tensor) -> torch.Tensor:
        """Compute the smoothed slope of all channels together; B × C × L → B × L."""
        steps = (signals[:, :, 2:] - signals[:, :, :-2]).nan_to_num(0)
        steps = steps / (steps.square().mean(dim=2, keepdim=True).sqrt() + 1e-6)  # each channel counts alike
        slope = F.pad(steps.square().sum(dim=1).sqrt(), (1, 1))  # B × L
        return F.conv1d(slope[:, None], self.window[None, None], padding=len(self.window) // 2)[:, 0]

    def _describe(self, signal: torch.Tensor, events: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Describe the events (L, bool) of one signal (C × L): rate, variation and shape."""
        at = events.nonzero()[:, 0]
        intervals = at.diff().to(signal.dtype)
        rate = self.samples_a_minute / intervals.mean()  # NaN without an interval
        variation = intervals.std(correction=0) / intervals.mean() if len(at) > 2 else torch.full_like(rate, torch.nan)
        whole = at[(at >= self.shortest) & (at < len(events) - 2 * self.shortest)]
        if not len(whole):
            return rate, variation, signal.new_zeros(len(signal), POINTS)
        places = whole[:, None] + torch.arange(-self.shortest, 2 * self.shortest, device=at.device)  # n × W
        level = signal.nanmedian(dim=1, keepdim=True).values
        shape = (signal[:, places].nanmedian(dim=1).values - level).nan_to_num(0)  # C × W
        return rate, variation, F.interpolate(shape[None], POINTS, mode="linear", align_corners=True)[0]
