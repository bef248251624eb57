"""Format a measured value with its interval, for metrics, cards and tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """Hold a value with its 95 % interval; the bounds are None where there is too little data."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        return f"{self.value:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.low is not None else "")


def undefined(why: str = "") -> dict[str, Any]:
    """Make an undefined estimate in plain values, with the reason where it is known."""
    return Estimate(None)._asdict() | ({"why": why} if why else {})


def described(values: Mapping[str, Any]) -> str:
    """Format an estimate given in plain values; other keys are ignored."""
    estimate = Estimate(values["value"], values["low"], values["high"])
    return f"{estimate}: {values['why']}" if values.get("why") else str(estimate)
