"""From a logit to the probability that is shown."""

from dataclasses import dataclass

import torch

from vlm.errors import UserError


@dataclass(frozen=True)
class Calibration:
    """One temperature for all labels (Guo et al., 2017), and on whom it was fitted; saved in the adapter."""

    temperature: float = 1.0
    patients: int = 0
    """Patients of the validation split; 0 where nothing was fitted."""
    cases: int = 0
    """Their cases with a known label."""

    def __post_init__(self) -> None:
        if not (1e-4 <= self.temperature <= 1e4 and self.patients >= 0 and self.cases >= 0):
            raise UserError(f"calibration: temperature {self.temperature} on {self.patients} patients is none")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of any shape → probabilities."""
        return torch.sigmoid(logits / self.temperature)

    def describe(self) -> str:
        """What a reader of a probability should know of it."""
        if not self.patients:
            return "probabilities are not calibrated"
        return f"probabilities calibrated on {self.patients} patients who were not trained on"
