"""Hold what an adapter keeps to judge its drafts, and check it when it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlm.config.strict import from_dict
from vlm.errors import UserError
from vlm.plain import shortened
from vlm.reliability.label_sets import LabelThresholds
from vlm.reliability.sentences import SentenceFit


@dataclass(frozen=True)
class Reliability:
    """Hold plain numbers that were fitted on the validation split; empty where nothing was."""

    coverage: float = 0.9
    """Wanted share of cases whose label set holds the truth."""
    label_sets: dict[str, LabelThresholds] = field(default_factory=dict)
    """Label → its thresholds; a label without any has no set."""

    unlike_above: float = 0.0
    """Distance of the image features above which a picture is unlike those of training; 0 if none was fitted."""
    sentences: SentenceFit | None = None
    """How sure a sentence is; None if it was not fitted."""

    def __post_init__(self) -> None:
        if not 0 <= self.unlike_above < 1e9:
            raise UserError(f"reliability.unlike_above: must be 0 or more, not {self.unlike_above}")
        if not 0.5 <= self.coverage < 1:
            raise UserError(f"reliability.coverage: must be 0.5 or more and below 1, not {self.coverage}")

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values; `read` reads them back."""
        return asdict(self)

    @classmethod
    def read(cls, values: Any, labels: Sequence[str], where: str) -> "Reliability":
        """Read untrusted JSON values of an adapter with these labels.

        Raises `UserError` that names the key for an unknown key or label, a wrong type, and a number out of range.
        """
        where = f"{where}: reliability"
        found: Reliability = from_dict(cls, values, where)
        for label in found.label_sets.keys() - set(labels):
            raise UserError(f"{where}.label_sets: {shortened(label)} is no label of the adapter")
        return found

    def sets_of(self, probabilities: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
        """Return label → the answers in its set, for the calibrated probabilities of one case."""
        return {name: self.label_sets[name].answers(p) for name, p in probabilities.items() if name in self.label_sets}
