"""Options of random changes of training cases: evidence withheld, images changed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DropoutConfig:
    """Evidence withheld at random in training, so that the model learns missing inputs."""

    image: float = 0.1
    """Probability that a training case loses its image."""
    vitals: float = 0.05
    """Probability that a training case loses all its vitals."""
    value: float = 0.05
    """Probability that a value is lost, each independently."""
    view: float = 0.1
    """Probability that a further view of a study is lost, each independently."""
    prior: float = 0.1
    """Probability that a study loses its earlier images and report."""
    context: float = 0.0
    """Probability that a study loses its context."""
    signal: float = 0.05
    """Probability that a training case loses its signal."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images."""

    rotate: float = 0.0
    """Largest rotation, degrees."""
    shift: float = 0.0
    """Largest shift, share of the image's side."""
    scale: float = 0.0
    """Largest relative change of size."""
    contrast: float = 0.0
    """Largest relative change of contrast and of brightness."""
    mirror: bool = False
    """Mirror left to right and top to bottom, each in half of the cases; a mirrored chest has its heart on the wrong
    side."""
