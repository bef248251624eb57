"""Find tensors that hold NaN or infinity, before they are saved, loaded or stepped with."""

from collections.abc import Mapping

import torch


def all_finite(values: torch.Tensor) -> bool:
    """Check whether a tensor holds no NaN and no infinity."""
    return not values.is_floating_point() or bool(torch.isfinite(values).all())


def first_nonfinite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, value in tensors.items() if not all_finite(value)), None)
