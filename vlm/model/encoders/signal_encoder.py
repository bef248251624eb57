"""Encode a physiological signal into tokens and into features that join x of equation (4)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from vlm.config import SignalConfig
from vlm.data.signals.signal_spec import SignalSpec
from vlm.errors import UserError
from vlm.model.encoders.signal_cycles import FEWEST_SAMPLES, POINTS, CycleFinder
from vlm.model.projection import TokenProjector, WordTokens

DIGITS = 3
"""Most digits of the rate, one token each."""
RATE_BINS, VARIATION_BINS = 24, 8
LEAST_VARIATION, MOST_VARIATION = 0.005, 0.5
SHAPE_GAIN = 2.5
"""Deviations are compressed to sign · log(1 + 2.5 · |deviations|): a small wave counts beside a large one."""
HALVINGS = 4
"""Blocks after the first convolution, each of which halves the time."""


class EmbedNames(Protocol):
    """Function from names to their word embeddings, S × H."""

    def __call__(self, names: Sequence[str], before: str = " ") -> torch.Tensor: ...


class SignalTokens(NamedTuple):
    """Encoding of B signals."""

    tokens: torch.Tensor
    """B × s × H."""
    x: torch.Tensor
    """Features for equation (4), B × X."""


class Block(nn.Module):
    """Residual block of two convolutions that halves the time; B × w × l → B × w × l/2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(1, width), nn.GELU(), nn.Conv1d(width, width, 5, 2, 2),
            nn.GroupNorm(1, width), nn.GELU(), nn.Conv1d(width, width, 5, 1, 2),
        )  # fmt: skip

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return F.avg_pool1d(signal, 2, ceil_mode=True) + self.layers(signal)


class CycleFeatures(nn.Module):
    """Code the rate, its variation and the mean shape of the events of a signal.

    The numbers are coded piecewise linearly, as vitals are (Gorishniy et al., 2022).
    """

    rates: torch.Tensor
    variations: torch.Tensor

    def __init__(self, config: SignalConfig, spec: SignalSpec) -> None:
        super().__init__()
        lowest, highest = config.cycles
        self.find = CycleFinder(spec.samples_a_second, lowest, highest)
        spread = (MOST_VARIATION / LEAST_VARIATION) ** torch.linspace(0, 1, VARIATION_BINS + 1)
        self.register_buffer("rates", torch.linspace(lowest, highest, RATE_BINS + 1), persistent=False)
        self.register_buffer("variations", LEAST_VARIATION * spread, persistent=False)
        self.shape = nn.Linear(len(spec.channels) * POINTS, config.width)
        self.size = RATE_BINS + VARIATION_BINS + config.width + 1

    def forward(self, signals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Code B × C × L as features, B × size; returns the rate as well, B, NaN for none."""
        cycles = self.find(signals)
        shape = cycles.shape.sign() * (SHAPE_GAIN * cycles.shape.abs()).log1p()
        codes = _bins(cycles.rate, self.rates), _bins(cycles.variation, self.variations)
        found = (~cycles.rate.isnan()).to(shape)[:, None]
        return torch.cat([*codes, self.shape(shape.flatten(1)), found], dim=1), cycles.rate


def _bins(value: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Code values piecewise linearly; B, NaN as the lowest → B × bins."""
    return ((value.nan_to_num(0)[:, None] - edges[:-1]) / edges.diff()).clamp(0, 1)


class RateWords(nn.Module):
    """Write the rate as the words of a text: `rate`, a space and its digits, each a token."""

    def __init__(self, embed_names: EmbedNames, token_rms: float) -> None:
        super().__init__()
        self.lead = WordTokens(embed_names(["rate", "no rate"]), token_rms)
        self.digits = WordTokens(embed_names([" ", *map(str, range(10))], before=""), token_rms)
        self.tokens = DIGITS + 2

    def forward(self, rate: torch.Tensor) -> torch.Tensor:
        """Write rates (B, NaN for none) as B × tokens × H."""
        digits = self.digits()  # 11 × H
        lead = self.lead()[rate.isnan().long()]  # B × H
        return torch.cat([lead[:, None], digits[:1].expand_as(lead)[:, None], digits[digits_of(rate)]], dim=1)


def digits_of(rate: torch.Tensor) -> torch.Tensor:
    """Number the digits of rounded rates from the left, 1 to 10 for 0 to 9, then 0 for nothing; B → B × 3."""
    whole = rate.round().nan_to_num(0).clamp(0, 10**DIGITS - 1).long()[:, None]  # B × 1
    places = 10 ** torch.arange(DIGITS, device=rate.device)  # 1, 10, 100
    count = (whole >= places[1:]).sum(dim=1, keepdim=True) + 1
    power = count - 1 - torch.arange(DIGITS, device=rate.device)  # B × 3, below 0 after the last digit
    digit = whole // 10 ** power.clamp(min=0) % 10 + 1
    return torch.where((power >= 0) & ~rate.isnan()[:, None], digit, 0)


class SignalEncoder(nn.Module):
    """Encode signals by strided convolutions and by their cycles; a learned vector stands for a missing signal."""

    def __init__(
        self,
        config: SignalConfig,
        spec: SignalSpec,
        embed_names: EmbedNames,
        hidden_size: int,
        token_rms: float,
        projector_size: int = 0,
    ) -> None:
        super().__init__()
        check_cycles(config, spec)
        width, self.config, self.spec = config.width, config, spec
        self.stem = nn.Conv1d(2 * len(spec.channels), width, 7, 2, 3)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(HALVINGS)))
        self.position = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.projector = TokenProjector(width, hidden_size, token_rms, projector_size)
        self.cycles = CycleFeatures(config, spec) if config.cycles else None
        self.size = 2 * width + (self.cycles.size if self.cycles else 0)
        self.rate = RateWords(embed_names, token_rms) if self.cycles and config.digits else None
        self.missing_token = nn.Parameter(torch.zeros(config.tokens, width))
        self.missing_x = nn.Parameter(torch.zeros(self.size))
        self.tokens = config.tokens + (self.rate.tokens if self.rate else 0)
        """s, number of tokens."""

    def forward(self, signals: torch.Tensor) -> SignalTokens:
        """Encode signals, B × C × L, normalised, NaN at gaps; a case without a signal has NaN alone."""
        gaps = signals.isnan()
        missing = gaps.flatten(1).all(dim=1)
        with torch.autocast(signals.device.type, enabled=False):
            samples = torch.cat([signals.float().nan_to_num(0), gaps.float()], dim=1)  # B × 2C × L
            hidden = F.gelu(self.blocks(self.stem(samples)))  # B × w × L/32
            parts = F.adaptive_avg_pool1d(hidden, self.config.tokens).transpose(1, 2)  # B × t × w
            parts = torch.where(missing[:, None, None], self.missing_token, parts) + self.position
            features = [hidden.mean(dim=2), hidden.amax(dim=2)]
            tokens = [self.projector(parts)]
            if self.cycles is not None:
                coded, rate = self.cycles(signals)
                features.append(coded)
                tokens += [self.rate(rate)] if self.rate is not None else []
            x = torch.where(missing[:, None], self.missing_x, torch.cat(features, dim=1))
        return SignalTokens(torch.cat(tokens, dim=1), x)


def with_signal(
    vitals: tuple[torch.Tensor, torch.Tensor], encoder: SignalEncoder | None, signals: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append the tokens and features of signals (B × C × L) to the vitals' tokens (B × n × H) and x (B × X).

    None stands for no signal; a model that reads none returns the vitals' own.
    """
    if encoder is None:
        return vitals
    tokens, x = vitals
    if signals is None:
        signals = x.new_full((len(x), len(encoder.spec.channels), encoder.spec.length), torch.nan)
    found = encoder(signals)
    tokens = torch.cat([tokens.to(found.tokens), found.tokens], dim=1) if tokens.shape[1] else found.tokens
    return tokens, torch.cat([x.to(found.x), found.x], dim=1)


def check_cycles(config: SignalConfig, spec: SignalSpec) -> None:
    """Raise `UserError` for rates of cycles that the samples cannot show."""
    if not config.cycles:
        return
    highest = config.cycles[1]
    per_period = 60 * spec.samples_a_second / highest
    if per_period < FEWEST_SAMPLES or 3 * per_period > spec.length:
        raise UserError(
            f"model.signal.cycles: at {highest:g} a minute each has {per_period:.3g} of the {spec.length:,} samples, "
            f"{spec.samples_a_second:g} a second; write rates that they show, or [] to look for none"
        )
