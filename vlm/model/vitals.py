"""Encode raw vitals into features, and features into tokens: equation (3), x = [x1 ... xm]."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from vlm.config import VitalConfig, VitalsConfig
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics
from vlm.data.vitals.series import state_words
from vlm.model.projection import NamedProjector

CLIP = 5.0
"""Limit to which scaled values are clamped, in standard deviations: one typing error must not drown the rest."""
NameEmbeddings = Callable[[Sequence[str]], torch.Tensor]
"""Function from names to their word embeddings, S × H."""
VitalEncoding = tuple[torch.Tensor, torch.Tensor]
"""Features (B × size) and state (B × S, one-hot) of one vital."""


class VitalFeatures(nn.Module):
    """Encode one vital as features and a one-hot state; a learned vector replaces the features of a missing value.

    A number's features are [robustly scaled value, piecewise-linear code (Gorishniy et al., 2022)]. Its state is
    the flag of a laboratory report: not measured, low, normal, elevated. A state is sharp at the threshold, where a
    smooth MLP on one number blurs. A category's state is the category.
    """

    centre: torch.Tensor
    scale: torch.Tensor
    low_edges: torch.Tensor
    widths: torch.Tensor
    limits: torch.Tensor

    def __init__(self, vital: VitalConfig, centre: float, scale: float, edges: tuple[float, ...]) -> None:
        super().__init__()
        self.names = [f"{vital.name} {word}" for word in ("not measured", *state_words(vital))]
        self.size = 0 if vital.categories else len(edges)  # one value and one bin fewer than edges
        self.missing = nn.Parameter(torch.zeros(self.size)) if self.size else None
        for name, values in {
            "centre": [centre],
            "scale": [scale],
            "low_edges": edges[:-1],
            "widths": np.diff(edges).tolist(),
            "limits": vital.reference,
        }.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, value: torch.Tensor) -> VitalEncoding:
        """Encode values (B, NaN where missing) into features (B × size) and the one-hot state (B × S)."""
        missing = torch.isnan(value)
        filled = torch.where(missing, torch.zeros_like(value), value)[:, None]  # NaN would poison the gradient
        if self.missing is None:
            state = 1 + filled[:, 0].long()
            features = value.new_zeros(len(value), 0)
        else:
            # 1 low, 2 normal, 3 elevated; without a reference range every value is 1, given.
            below, above = (filled < self.limits[:1]).sum(1), (filled > self.limits[1:]).sum(1)
            state = 1 - below + above + (1 if len(self.limits) else 0)
            scaled = ((filled - self.centre) / self.scale).clamp(-CLIP, CLIP)  # B × 1
            bins = ((filled - self.low_edges) / self.widths).clamp(0, 1)  # B × bins
            features = torch.where(missing[:, None], self.missing, torch.cat([scaled, bins], dim=1))
        states = nn.functional.one_hot(torch.where(missing, 0, state), len(self.names)).to(value.dtype)
        return features, states


class VitalsEncoder(nn.Module):
    """Encode the clinical vector into features, states and vitals tokens, one token for each group of vitals."""

    def __init__(
        self,
        config: VitalsConfig,
        schema: VitalsSchema,
        statistics: VitalsStatistics,
        embed_names: NameEmbeddings,
        token_rms: float,
        projector_size: int = 0,
    ) -> None:
        super().__init__()
        scales = zip(schema.vitals, statistics.centre, statistics.scale, statistics.edges, strict=True)
        values = [VitalFeatures(*scale) for scale in scales]
        self.values = nn.ModuleList(values)
        self.pressure = _pressure(values, schema)
        state_names = [value.names for value in values]
        if self.pressure:
            state_names[self.pressure[0]] = [*state_names[self.pressure[0]], *PRESSURE_STATES]
        self.tokens = min(config.tokens, len(schema)) if config.injection == "tokens" else 0
        self.groups = [group.tolist() for group in np.array_split(np.arange(len(schema)), max(self.tokens, 1))]
        self.projectors = nn.ModuleList()
        for group in self.groups if self.tokens else []:
            names = [name for i in group for name in state_names[i]]
            size = sum(values[i].size for i in group)
            self.projectors.append(NamedProjector(size + len(names), embed_names(names), token_rms, projector_size))
        self.size = sum(value.size for value in values) + sum(map(len, state_names))

    def forward(self, vitals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode vitals (B × m, NaN where missing) into tokens (B × n × H) and the x of equation (4), B × X."""
        if not len(self.values):
            return vitals.new_zeros(len(vitals), 0, 0), vitals.new_zeros(len(vitals), 0)
        return self.combine(self.read(vitals))

    def read(self, vitals: torch.Tensor) -> list[VitalEncoding]:
        """Encode vitals (B × m, NaN where missing) into the features and state of each."""
        return [encode(vitals[:, i]) for i, encode in enumerate(self.values)]

    def combine(self, encoded: Sequence[VitalEncoding]) -> tuple[torch.Tensor, torch.Tensor]:
        """Combine the features and state of each vital, at least one, into vitals tokens (B × n × H) and x (B × X).

        A state need not be one-hot: the output is continuous along a path between two states.
        """
        features, states = [pair[0] for pair in encoded], [pair[1] for pair in encoded]
        if self.pressure:
            systolic, diastolic = self.pressure
            both = pressure_state(states[systolic], states[diastolic])  # B × 4
            states[systolic] = torch.cat([states[systolic], both], dim=1)
        tokens = []
        for group, projector in zip(self.groups if self.tokens else [], self.projectors, strict=True):
            state = torch.cat([states[i] for i in group], dim=1)  # B × S
            tokens.append(projector(state, torch.cat([*[features[i] for i in group], state], dim=1)))
        x = torch.cat([*features, *states], dim=1)  # B × X
        return torch.stack(tokens, dim=1) if tokens else x.new_zeros(len(x), 0, 0), x


PRESSURE_STATES = [f"blood pressure {word}" for word in ("not measured", "low", "normal", "elevated")]


def _pressure(values: list[VitalFeatures], schema: VitalsSchema) -> tuple[int, int] | None:
    """Find the indices of systolic and diastolic pressure, if the schema has both with a reference range."""
    if not {"systolic", "diastolic"} <= set(schema.names):
        return None
    pair = schema.position("systolic"), schema.position("diastolic")
    return pair if all(len(values[i].names) == len(PRESSURE_STATES) for i in pair) else None


def pressure_state(systolic: torch.Tensor, diastolic: torch.Tensor) -> torch.Tensor:
    """Combine the states of both parts (B × 4 each, one-hot) into the state of the blood pressure, B × 4.

    It is elevated where either part is (Mancia et al., 2023), else low where either is; one part alone is not
    measured. The text loss alone learns a high diastolic value beside a normal systolic one last of all.
    """
    missing, low, _, elevated = (systolic + diastolic).clamp(max=1).unbind(dim=1)  # each B
    low = low * (1 - elevated)
    missing = missing * (1 - elevated) * (1 - low)
    return torch.stack([missing, low, 1 - missing - low - elevated, elevated], dim=1)
