"""Convert logits to calibrated probabilities by temperature scaling."""

from dataclasses import dataclass

import torch

from vlm.errors import UserError


@dataclass(frozen=True)
class Calibration:
    """Hold one temperature for all labels (Guo et al., 2017) and the size of the set it was fitted on.

    Saved in the adapter.
    """

    temperature: float = 1.0
    patients: int = 0
    """Number of patients in the validation split; 0 if nothing was fitted."""
    cases: int = 0
    """Number of their cases with a known label."""

    def __post_init__(self) -> None:
        if not (1e-4 <= self.temperature <= 1e4 and self.patients >= 0 and self.cases >= 0):
            raise UserError(f"calibration: temperature {self.temperature} on {self.patients} patients is none")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Convert logits of any shape to probabilities."""
        return torch.sigmoid(logits / self.temperature)

    def describe(self) -> str:
        """Describe the calibration in one sentence for the reader."""
        if not self.patients:
            return "probabilities are not calibrated"
        return f"probabilities calibrated on {self.patients} patients who were not trained on"
