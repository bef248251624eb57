"""A measured value with its interval, as metrics, cards and tables write it."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """A value with its 95 % interval; null bounds where there was too little to state one."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        return f"{self.value:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.low is not None else "")


def undefined(why: str = "") -> dict[str, Any]:
    """An estimate in plain values where nothing was read: no number, and the reason where it is known."""
    return Estimate(None)._asdict() | ({"why": why} if why else {})


def described(values: Mapping[str, Any]) -> str:
    """An estimate in plain values, whatever else stands beside it, in words."""
    estimate = Estimate(values["value"], values["low"], values["high"])
    return f"{estimate}: {values['why']}" if values.get("why") else str(estimate)
