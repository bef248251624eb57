"""Hold the drafted report of one case, and print it."""

from dataclasses import asdict, dataclass, field
from typing import Any

from vlm.plain import escaped

MOST_LINES, LONGEST = 40, 120
"""Most labels and warnings printed, and most characters of each: their names are untrusted."""
KINDS = ("probability", "vital", "place", "denial")
"""Kinds of contradictions; see `Contradiction.kind`."""
NOTICE = "Draft for a clinician's eyes. Not a diagnosis."
FORMAT = 1
"""Version of the JSON of a draft; keys may be added to it, but none changes its meaning or is taken away."""


@dataclass(frozen=True)
class ReadImage:
    """Name an image that the model read by its role."""

    view: str = ""
    """View; empty if it is not known."""
    prior: bool = False
    """True for an image of an earlier study."""
    days: float | None = None
    """Days from the earlier study to this one; None if they are not known, and for a current image."""

    def __str__(self) -> str:
        words = " ".join(filter(None, ("prior" if self.prior else "", self.view, "image")))
        if not self.prior:
            return words
        return f"{words}, time unknown" if self.days is None else f"{words}, {self.days:g} days before"


@dataclass(frozen=True)
class StatedFinding:
    """State what a sentence of the draft says of a finding."""

    finding: str
    """Name in the vocabulary, such as `pleural_effusion`."""
    status: str
    """`present`, `absent` or `uncertain`."""
    sides: tuple[str, ...]
    """`left`, `right`, both or neither."""
    sites: tuple[str, ...]
    """Zones or sites, such as `lower`."""
    severities: tuple[str, ...]
    """Degrees and sizes, such as `mild`; of an absent finding what is denied: `no large effusion`."""
    section: str | None
    """Section that the sentence stands in; None outside of sections."""
    sentence: int
    """Number of the sentence in the draft, from 1."""
    text: str
    """The sentence."""
    label: str | None
    """Label that stands for the finding; None without one."""
    probability: float | None
    """Probability that the label is present, 0 to 1; None without a label."""
    snomed: str | None
    """SNOMED CT code of the finding; None where the vocabulary has none for these words."""
    radlex: str | None = None
    """RadLex code of the finding, such as `RID5352`; likewise."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class JudgedSentence:
    """Say how sure a sentence of the draft is, and what that rests on."""

    sentence: int
    """Number of the sentence in the draft, from 1."""
    text: str
    """The sentence."""
    confidence: float | None
    """Probability that it is right, 0 to 1; None where no label stands for what it says."""
    labels: tuple[str, ...]
    """Labels that the confidence rests on."""
    vitals: tuple[str, ...]
    """Vitals of which it says a number or level that fits the value given."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        sure = self.confidence or 0
        words = "over 99%" if sure > 0.99 else "under 1%" if sure < 0.01 else f"{sure:.0%}"
        return f"{self.text!r}: {words} sure ({', '.join(self.labels).replace('_', ' ')})"


@dataclass(frozen=True)
class Contradiction:
    """Name a sentence of a draft that contradicts the rest of what is known of the case, and say why."""

    sentence: str
    """The sentence as it stands in the draft, its beginning if it is long."""
    kind: str
    """`probability`: against the head; `vital`: against a value given; `place`: another side or site than in another
    sentence; `denial`: asserted and denied."""
    why: str

    def __str__(self) -> str:
        return f"{self.sentence!r}: {self.why}"


@dataclass(frozen=True)
class Report:
    """Hold a drafted report, the label probabilities, and notes for the reader."""

    text: str
    """The draft."""
    probabilities: dict[str, float]
    """Label → probability, 0 to 1."""
    vitals: dict[str, Any] = field(default_factory=dict)
    """The values the model read, by name, in the schema's units."""
    warnings: tuple[str, ...] = ()
    """Missing or implausible inputs."""
    calibration: str = ""
    """Description of the calibration."""
    notice: str = NOTICE
    finished: bool = True
    """False for a truncated draft, which a warning says too."""
    sections: dict[str, str] = field(default_factory=dict)
    """The parts of the draft by name, such as `findings`; empty for an adapter trained without headings."""
    images: tuple[ReadImage, ...] = ()
    """The images that the model read, in its order."""
    findings: tuple[StatedFinding, ...] = ()
    """What the draft says of each finding, in the order of its sentences."""

    label_sets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Label → the answers that fit the case: `present`, `absent`, both or none; of the labels that have a set."""
    coverage: float | None = None
    """Share of cases whose sets hold the truth, if they are like the validation patients'; None without sets."""
    contradictions: tuple[Contradiction, ...] = ()
    """Sentences of the draft that contradict each other, the probabilities or the values given."""
    sentences: tuple[JudgedSentence, ...] = ()
    """How sure each sentence is; empty for an adapter that does not know."""
    confidence: float | None = None
    """Probability that all sentences with a confidence are right, as if independent; None without any."""
    withheld: str = ""
    """Why no draft is given, where abstaining was asked for; the text is empty then."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON; `draft-1.schema.json` describes them."""
        values = asdict(self) | {
            "label_sets": {label: list(answers) for label, answers in self.label_sets.items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "sentences": [sentence.to_dict() for sentence in self.sentences],
        }
        return {"format": FORMAT} | {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    def __str__(self) -> str:
        return f"{self.text or self.no_draft()}\n{self.after_text()}"

    def no_draft(self) -> str:
        """Say that no draft is given, and why; empty where one is."""
        return f"no draft: {self.withheld}" if self.withheld else ""

    def after_text(self) -> str:
        """Format the text printed below the draft."""
        calibration = [f"({self.calibration})"] if self.calibration else []
        named = self.images not in ((), (ReadImage(),))
        read = [f"read: {escaped('; '.join(map(str, self.images)))}"] if named else []
        doubts = [f"contradiction: {escaped(str(one), 3 * LONGEST)}" for one in self.contradictions[:MOST_LINES]]
        warnings = [f"warning: {escaped(warning, LONGEST)}" for warning in self.warnings[:MOST_LINES]]
        if len(self.warnings) > MOST_LINES:
            warnings.append(f"warning: {len(self.warnings) - MOST_LINES} more; --json holds them all")
        sets = [f"({self.set_meaning()})"] if self.label_sets else []
        below = [*calibration, *sets, *read, *self._sentence_lines(), *doubts, *warnings]
        return "\n".join(["", *self.probability_lines(), *below, "", self.notice])

    def _sentence_lines(self) -> list[str]:
        """Format one line per sentence with a confidence, the least sure first."""
        known = [one for one in self.sentences if one.confidence is not None]
        known.sort(key=lambda one: one.confidence or 0)
        return [f"sentence: {escaped(str(one), 3 * LONGEST)}" for one in known[:MOST_LINES]]

    def set_meaning(self) -> str:
        """Explain the label sets to their reader."""
        return f"of 100 sets of answers behind the probabilities, about {100 * (self.coverage or 0):.3g} hold the truth"

    def set_words(self, label: str) -> str:
        """Format the set of a label: `present`, `absent`, `present or absent` or `neither fits`; empty without one."""
        if label not in self.label_sets:
            return ""
        return " or ".join(self.label_sets[label]) or "neither fits"

    def probability_lines(self) -> list[str]:
        """Format one aligned line per label, only the most probable ones where there are many."""
        shown = list(self.probabilities.items())
        if len(shown) > MOST_LINES:
            shown = sorted(shown, key=lambda pair: -pair[1])[:MOST_LINES]
        names = [escaped(name, LONGEST) for name, _ in shown]
        width = max(map(len, names), default=0)
        lines = [
            f"{name:<{width}}  {value:6.1%}  {self.set_words(label)}".rstrip()
            for name, (label, value) in zip(names, shown, strict=True)
        ]
        left_out = len(self.probabilities) - len(shown)
        return [*lines, f"and {left_out} less probable labels; --json holds them all"] if left_out else lines
