"""Validate the options of an encoder's architecture, which come from a repository or an adapter."""

import json
import re
from typing import Any

from vlm.errors import UserError
from vlm.plain import shortened
from vlm.untrusted import JsonFault, parse_json

LONGEST_OPTIONS = 20_000
"""Most characters of an architecture's options as JSON."""
LARGEST_NUMBER, MOST_LAYERS, LARGEST_IMAGE = 65_536, 128, 2048
"""Largest whole number, number of layers, and side in pixels among them."""
LAYERS = re.compile(r"depth|layers|blocks|stages|repeat|num_loops")
"""Pattern in the key of a number of layers; `drop_path` and its like are no whole numbers."""
SIDES = re.compile(r"image_size|img_size|patch_size|window_size")
FOREIGN = re.compile(
    r"^_|^auto_map$|attn_implementation|experts_implementation|backbone|checkpoint|pretrained|quantization_config"
    r"|^cache_dir$|^features_only$|^scriptable$|^trust_remote_code$|^transformers_weights$|^file$|^url$|hf_hub"
)
"""Pattern of keys that name code, files or other models, or change what a model returns."""


def parse_options(text: str, key: str = "model.vision.options") -> dict[str, Any]:
    """Parse an architecture's options from JSON; raises `UserError` as `check_options` does."""
    if len(text) > LONGEST_OPTIONS:
        raise UserError(f"{key}: must be at most {LONGEST_OPTIONS:,} characters long")
    try:
        values = parse_json(text or "{}", longest=256, deepest=6)
    except JsonFault as fault:
        raise UserError(f"{key}: is no JSON: {fault}") from None
    if not isinstance(values, dict):
        raise UserError(f"{key}: must be a JSON object, not {shortened(text)}")
    check_options(values, key)
    return values


def check_options(values: dict[str, Any], key: str) -> None:
    """Raise `UserError` for an option that names code or files, and for numbers that no encoder has.

    The limits keep a stranger's options from building a model for minutes, even without memory for its weights.
    """
    for name, value in values.items():
        if FOREIGN.search(name):
            raise UserError(f"{key}: {shortened(name)} is no option of an architecture")
        for item in _leaves(value):
            if isinstance(item, str) and ("/" in item or len(item) > 100):
                raise UserError(f"{key}: {name}: {shortened(item)} is no option of an architecture")
            most = MOST_LAYERS if LAYERS.search(name) else LARGEST_IMAGE if SIDES.search(name) else LARGEST_NUMBER
            if type(item) in (int, float) and not abs(item) <= most:
                raise UserError(f"{key}: {name}: must be at most {most:,}, not {item:.0f}")
        if LAYERS.search(name) and sum(i for i in _leaves(value) if type(i) in (int, float)) > 4 * MOST_LAYERS:
            raise UserError(f"{key}: {name}: must be at most {4 * MOST_LAYERS:,} in all")


def write_options(values: dict[str, Any]) -> str:
    """Write options as JSON for an adapter's config; an empty text for none."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")) if values else ""


def _leaves(value: Any) -> list[Any]:
    """List the plain values in nested ones."""
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list | tuple) else [value]
