"""Encode images by any timm model that gives features: CNNs by their own forward, others by their intermediates."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vlm.compat import meta_device
from vlm.errors import UserError, nearest, one_line
from vlm.model.encoders.encoder import Encoder
from vlm.model.encoders.source import Source, read_tensors

FILTERS = ("checkpoint_filter_fn", "_filter_fn", "pretrained_filter_fn", "checkpoint_filter_fn_encoder")
"""Names of the functions in timm's modules that fit the tensors of other layouts and sizes to a model."""
LAST: dict[str, Any] = {"indices": 1, "output_fmt": "NCHW", "intermediates_only": True}
"""Options of `forward_intermediates` for its last grid."""


@dataclass(frozen=True)
class TimmEncoder(Encoder):
    """Read the grid of a timm model.

    A model whose forward without classifier and pooling gives a grid of `num_features` channels is read so. Of others
    the last intermediate is taken, with the model's last norm, as its classifier sees it.
    """

    options: tuple[tuple[str, Any], ...]
    """Options of `timm.create_model`."""
    halves: bool = True
    normed: bool = False
    """Let the model put its last norm on the intermediate."""

    def grid(self, network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        if self.halves:
            return network(pixels)  # type: ignore[no-any-return]
        norm = {"norm": True} if self.normed else {}
        grid = network.forward_intermediates(pixels, **LAST, **norm)[-1]  # type: ignore[operator]
        norm_after_pooling = getattr(network, "fc_norm", None)  # in place of `norm` in models that average their tokens
        if norm_after_pooling is None or not isinstance(getattr(network, "norm", None), nn.Identity):
            return grid  # type: ignore[no-any-return]
        return norm_after_pooling(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]

    def stages(self, network: nn.Module) -> list[list[str]]:
        return _groups(network, coarse=True)

    def layers(self, network: nn.Module) -> list[list[str]]:
        return _groups(network, coarse=False)


def _groups(network: nn.Module, coarse: bool) -> list[list[str]]:
    groups = timm.models.group_parameters(network, network.group_matcher(coarse=coarse))  # type: ignore[operator]
    return list(groups.values())


def check_name(name: str, key: str = "model.vision.name") -> None:
    """Raise `UserError` for an architecture that timm does not have."""
    if timm.is_model(name.split(".")[0]):
        return
    found = timm.list_models(f"*{name.split('_')[0]}*")
    near = found[0] if found else nearest(name, timm.list_models())
    raise UserError(f"{key}: timm has no model {name}{f'; try {near}' if near else ''}")


def choose_reading(source: Source, size: int, channels: int) -> TimmEncoder:
    """Find out how a timm model gives a grid at this size, on the meta device, where it takes no memory.

    Raises `UserError` for a model that gives none, and for a size that it does not take, with sizes that it takes.
    """
    check_name(source.architecture)
    reasons: list[str] = []
    for encoder in _candidates(source, size, channels):
        try:
            grid = _probe(source.architecture, encoder, size, channels)
        except UserError:
            raise
        except Exception as error:  # any error of a library's model
            reasons.append((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
            continue
        if grid:
            return encoder
        reasons.append("it gives no grid of features")
    raise UserError(_refusal(source, size, channels, reasons))


def _candidates(source: Source, size: int, channels: int) -> list[TimmEncoder]:
    """List ways to build and read a model: as a CNN, of this size where the size is fixed, by its intermediates."""
    options = {key: value for key, value in source.options.items() if key not in ("num_classes", "global_pool")}
    options |= {"in_chans": channels} if channels != 3 or "in_chans" in options else {}
    config = timm.get_pretrained_cfg(source.architecture, allow_unregistered=True)
    usual = (config.input_size or (3, size, size))[-1] if config else size
    fitted = options | {"img_size": size} if size != usual or "img_size" in options else options

    def ways(given: dict[str, Any]) -> list[TimmEncoder]:
        whole = TimmEncoder(tuple({**given, "num_classes": 0, "global_pool": ""}.items()))
        parts = (TimmEncoder(tuple({**given, "num_classes": 0}.items()), False, normed) for normed in (True, False))
        return [whole, *parts]

    if fitted == options:
        return ways(options)
    fixed = "img_size" in options or (config and config.fixed_input_size)  # as most vision transformers are
    return [ways(options)[0], *(ways(fitted)[1:] + ways(fitted)[:1] if fixed else ways(options)[1:])]


def _probe(name: str, encoder: TimmEncoder, size: int, channels: int) -> bool:
    """Check whether a model read so gives a grid that covers the image."""
    with torch.random.fork_rng(devices=[]), meta_device(), torch.no_grad():
        network = timm.create_model(name, **dict(encoder.options)).eval()
        if not encoder.halves:
            intermediates: Any = getattr(network, "forward_intermediates", None)
            if not intermediates or (encoder.normed and "norm" not in signature(intermediates).parameters):
                return False
        grid = encoder.grid(network, torch.zeros(1, channels, size, size))
    if not isinstance(grid, torch.Tensor) or grid.ndim != 4:
        return False
    if encoder.halves:
        own = getattr(network, "output_fmt", "NCHW") in ("NCHW", None)
        return bool(own and grid.shape[1] == getattr(network, "num_features", grid.shape[1]))
    patch = _patch(network)
    if patch and size % patch:
        near = sorted({patch * max(1, size // patch), patch * (size // patch + 1)})
        raise UserError(
            f"model.vision.name: {name} takes no images of {size} pixels: they are no multiple of its patches of "
            f"{patch}; set data.image_size {' or '.join(map(str, near))}"
        )
    return True


def _patch(network: nn.Module) -> int:
    """Get the side of the patches of a plain vision transformer, pixels; 0 for others."""
    sides = {stage["reduction"] for stage in getattr(network, "feature_info", None) or [{"reduction": 0}]}
    return int(min(sides)) if len(sides) == 1 and hasattr(network, "patch_embed") else 0


def _refusal(source: Source, size: int, channels: int, reasons: list[str]) -> str:
    """Say why no way worked, with sizes near the one asked for that work."""
    near = {source.pictures.size, *(32 * max(1, size // 32 + more) for more in (0, 1))}
    works = [
        str(other)
        for other in sorted(near - {size})
        if any(_works(source, encoder, other, channels) for encoder in _candidates(source, other, channels))
    ]
    if works:
        return (
            f"model.vision.name: {source.architecture} takes no images of {size} pixels ({reasons[-1]}); "
            f"set data.image_size {' or '.join(works)}"
        )
    return f"model.vision.name: {source.architecture} gives no grid of features ({reasons[-1]}); choose another encoder"


def _works(source: Source, encoder: TimmEncoder, size: int, channels: int) -> bool:
    try:
        return _probe(source.architecture, encoder, size, channels)
    except Exception:  # any error of a library's model
        return False


def build_network(source: Source, encoder: TimmEncoder, own: bool) -> nn.Module:
    """Build the network with random weights, those of a file, or timm's own (`own`).

    Raises `UserError` for weights that do not fit; only a classifier and other unused tensors may be left over.
    """
    options = dict(encoder.options)
    if own and source.file:  # the pinned file of timm's own weights goes through timm's own loading
        options["pretrained_cfg_overlay"] = {"file": str(source.file), "source": ""}
    with one_line(f"model.vision: cannot build {source.architecture}"):
        network = timm.create_model(source.architecture, pretrained=own, **options)
    if source.file and not own:
        _load(network, source)
    return network


def _load(network: nn.Module, source: Source) -> None:
    """Load all tensors of the network from a safetensors file, fitted by timm to its layout and size where needed."""
    assert source.file
    given, wanted = read_tensors(source.file), network.state_dict()
    if _misfit(given, wanted):
        fit = _fitting(network)
        with one_line(f"model.vision.weights: {source.file} does not fit {source.architecture}"):
            given = fit(given, network) if fit else given
    if missing := _misfit(given, wanted):
        raise UserError(
            f"model.vision.weights: {source.file} does not fit {source.architecture}: {len(missing)} tensors, "
            f"first {missing[0]}"
        )
    network.load_state_dict({name: given[name] for name in wanted})


def _misfit(given: dict[str, torch.Tensor], wanted: dict[str, Any]) -> list[str]:
    return [name for name, value in wanted.items() if name not in given or given[name].shape != value.shape]


def _fitting(network: nn.Module) -> Callable[..., dict[str, torch.Tensor]] | None:
    module = sys.modules[type(network).__module__]
    return next((getattr(module, name) for name in FILTERS if hasattr(module, name)), None)


@cache
def own_weights(name: str) -> tuple[str, Path] | None:
    """Find the file in the Hub's cache that timm loaded its own weights from, as `hf-hub:ORG/NAME@COMMIT`.

    None where they come from elsewhere or are no plain safetensors.
    """
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if not config or not config.hf_hub_id or config.custom_load or config.hf_hub_filename:
        return None
    file = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    if not isinstance(file, str):
        return None
    return f"hf-hub:{config.hf_hub_id}@{Path(file).parent.name}", Path(file)
