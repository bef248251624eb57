"""Options of physiological signals: where their samples are, and how the model reads them."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SignalColumnConfig:
    """The signal of each case of a table, such as an ECG: a few channels of numbers at a fixed rate."""

    column: str | None = None
    """Column that names the signal: a file (`.csv`, `.npy`), a key of `file`, or a JSON list of numbers for each
    channel; null without signals."""
    file: str = ""
    """File of the signals of all cases, relative to `data.root`: `.npz` or `.npy`, case × sample × channel or
    case × channel × sample; empty: each case has its own."""
    array: str = "signals"
    """Name of the samples in an `.npz`."""
    key: str = ""
    """Name of the keys in an `.npz`, one a case, that the column holds; empty: the column holds places from 0."""
    channels: list[str] = field(default_factory=list)
    """Names of the channels, in order; empty: one, named as the column."""
    rate: float = 1.0
    """Samples a second."""
    scale: float = 1.0
    """Factor from a sample to its unit, such as 0.001 for microvolts as millivolts."""
    average: int = 1
    """Samples averaged into one, the only resampling: 5 makes 100 a second of 500."""


@dataclass(frozen=True)
class SignalConfig:
    """The encoder of a signal: convolutions over its samples, and the rate and shape of its cycle."""

    tokens: int = 4
    """Tokens of the samples, one for each equal part of the time."""
    width: int = 32
    """Channels of the convolutions."""
    cycles: list[float] = field(default_factory=list)
    """[lowest, highest] rate of a repeated event, a minute, such as [30, 220] for heart beats: the events are found,
    and their rate, its variation and their mean shape are features. Empty: none is sought."""
    digits: bool = True
    """Show the language model that rate as words, `rate 64`, a token for each digit."""
