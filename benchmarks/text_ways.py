"""The ways to train the text that benchmarks.text_options tries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Way:
    """One way to train the text."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Changes of the config."""
    shown: str = "head"
    """Verdicts in training: of the `head`, of heads `crossfit` on the other lesions, `sampled` by the head's
    probabilities, or of the head with the `costs` of a miss, which otherwise count in drafting alone."""
    weights: str = ""
    """Tokens with more weight: of `findings`, or those that the `evidence` makes likelier."""
    lora_rests: float = 0.0
    """Share of the steps in which the projectors learn alone."""
    context: str = ""
    """Report in the prompt: of the `nearest` training case of another lesion, or of a `random` one."""
    further: str = ""
    """Further steps: `longer` as before, or on the `reward`."""
    kept: str = ""
    """Which of four checkpoints is kept: that with the largest `gap` of text loss between another lesion's picture and
    the own, on validation cases; otherwise the last."""


WAYS = {
    "plain": Way(),
    "soft verdicts (sharpness 3)": Way({"model.fusion.sharpness": 3.0}),
    "costs of a miss in training too": Way(shown="costs"),
    "verdicts out of fold": Way(shown="crossfit"),
    "verdicts sampled": Way(shown="sampled"),
    "projectors alone for a third": Way(lora_rests=1 / 3),
    "findings weigh three times": Way(weights="findings"),
    "weight by evidence": Way(weights="evidence"),
    "no token of z": Way({"model.fusion.z_token": False}),
    "projectors of 64": Way({"model.projector_size": 64}),
    "nearest case's report shown": Way(context="nearest"),
    "random case's report shown": Way(context="random"),
    "checkpoint by use of the picture": Way(kept="gap"),
    "a quarter longer": Way(further="longer"),
    "then a reward": Way(further="reward"),
}
