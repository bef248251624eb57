"""What a user gets for one case."""

from dataclasses import asdict, dataclass, field
from typing import Any

NOTICE = "Draft for a clinician's eyes. Not a diagnosis."


@dataclass(frozen=True)
class Report:
    """A drafted report, the labels' probabilities, and what the reader should know about them."""

    text: str
    """The draft."""
    probabilities: dict[str, float]
    """Label → probability, 0 to 1."""
    vitals: dict[str, Any] = field(default_factory=dict)
    """The values the model read, by name, in the schema's units."""
    warnings: tuple[str, ...] = ()
    """Missing or implausible inputs."""
    calibration: str = ""
    """On whom the probabilities were calibrated."""
    notice: str = NOTICE
    finished: bool = True
    """False for a draft that was cut, which a warning says too."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def __str__(self) -> str:
        return f"{self.text}\n{self.after_text()}"

    def after_text(self) -> str:
        """What is printed below the draft."""
        calibration = [f"({self.calibration})"] if self.calibration else []
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(["", *self.probability_lines(), *calibration, *warnings, "", self.notice])

    def probability_lines(self) -> list[str]:
        """One aligned line a label."""
        width = max((len(name) for name in self.probabilities), default=0)
        return [f"{name:<{width}}  {value:6.1%}" for name, value in self.probabilities.items()]
