"""Find out what an encoder's name stands for: library, architecture, weights, and how its pictures are prepared.

A name is one of timm (`resnet50.a1_in1k`), a repository (`hf-hub:ORG/NAME`), a folder, or with the prefix
`transformers:` either of these or a model type of Transformers. What comes from outside is JSON and safetensors only.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from transformers.utils import cached_file

from vlm.config import VisionConfig
from vlm.errors import UserError, one_line
from vlm.model.encoders.encoder import Pictures
from vlm.model.encoders.encoder_options import check_options, parse_options
from vlm.model.encoders.source import TRANSFORMERS, Source, file_digest
from vlm.model.encoders.timm_encoder import check_name
from vlm.model.encoders.transformers_encoder import vision_options
from vlm.untrusted import parse_json
from vlm.weights import is_wheel, vision_weights_file

HUB = re.compile(r"hf[-_]hub:(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w.-]+\.safetensors))?")
WEIGHTS = {"timm": "model.safetensors", "transformers": "model.safetensors", "open_clip": "open_clip_model.safetensors"}
"""Layout of a repository or folder → its file of weights."""
RESAMPLING = {0: "area", 1: "bicubic", 2: "bilinear", 3: "bicubic", 4: "area", 5: "bilinear"}
"""Pillow's number of a filter → ours; the nearest in kind of those that we do not have."""
FILTERS = {"bicubic": "bicubic", "bilinear": "bilinear", "lanczos": "bicubic"}


def find_source(config: VisionConfig, load_weights: bool = True) -> Source:
    """Find what the config's name stands for, and the file of weights if they are wanted.

    Raises `UserError` for a name that stands for nothing, a file of other weights than `sha256` says, and a repository
    or folder without safetensors.
    """
    transformers = config.name.startswith(TRANSFORMERS)
    plain = config.name.removeprefix(TRANSFORMERS).removeprefix("local-dir:")
    place = _place(plain, config.name.startswith("local-dir:"), transformers)
    if place:
        source = _read_place(*place, transformers, load_weights and config.weights == "pretrained")
        if config.weights not in ("pretrained", "random"):
            raise UserError(f"model.vision.weights: {config.name} brings its own weights; leave it at pretrained")
    else:
        with one_line(f"model.vision.name: cannot read {config.name}"):
            source = _named(plain, transformers, parse_options(config.options))
        if load_weights:
            source = source._replace(**_weights(config))
    pinned = config.sha256 if load_weights and not is_wheel(config.weights) else None
    if pinned and source.file and (found := file_digest(source.file)) != pinned:
        where = source.address or source.file
        raise UserError(f"model.vision: SHA-256 of {where} is {found}, the config says {pinned}; not used")
    return source._replace(pictures=_wanted(config, source))


def _wanted(config: VisionConfig, source: Source) -> Pictures:
    """Apply the config's own options to how pictures are prepared."""
    pictures = source.pictures
    channels = config.channels or _first_channels(source) or pictures.channels
    mean, std = (own if own is not None else found for own, found in
                 ((config.mean, pictures.mean), (config.std, pictures.std)))  # fmt: skip
    resizing = pictures.interpolation if config.interpolation == "auto" else config.interpolation
    means = pictures.color_mean if config.mean is None else (mean,) * 3
    stds = pictures.color_std if config.std is None else (std,) * 3
    return Pictures(mean, std, means, stds, pictures.size, resizing, channels)


def _first_channels(source: Source) -> int | None:
    """Count the channels of the first layer in a file of weights of a timm model, if there is one."""
    from safetensors import SafetensorError, safe_open

    config = timm.get_pretrained_cfg(source.architecture, allow_unregistered=True) if source.library == "timm" else None
    if source.file is None or not config or not isinstance(config.first_conv, str):
        return None
    name = f"{config.first_conv}.weight"
    try:
        with safe_open(source.file, "pt") as tensors:
            shape = tensors.get_slice(name).get_shape() if name in tensors.keys() else ()  # noqa: SIM118
    except (OSError, SafetensorError):
        return None  # reported where it is loaded
    return shape[1] if len(shape) == 4 and shape[1] in (1, 3) else None  # type: ignore[misc]


# ------------------------------------------------------------------------------------- a name alone


def _named(name: str, transformers: bool, options: dict[str, Any]) -> Source:
    if transformers:
        kind, given = vision_options({"model_type": name, **options}, name)
        return Source("transformers", kind, given, _of_transformers(given, {}), reason="the name's prefix")
    check_name(name)
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return Source("timm", name, options, _of_timm(config.to_dict() if config else {}, options))


def _weights(config: VisionConfig) -> dict[str, Any]:
    """Find the file of weights that a config names beside a plain name."""
    if config.weights in ("pretrained", "random"):
        if config.weights == "pretrained" and config.name.startswith(TRANSFORMERS):
            raise UserError(f"model.vision.weights: {config.name} has none of its own; name a repository or a file")
        return {}
    if match := HUB.fullmatch(config.weights):
        file = _fetch(match["id"], match["file"] or "model.safetensors", match["revision"], "model.vision.weights")
        assert file
        return {"file": file, "address": _address(match["id"], file)}
    name = config.name.removeprefix(TRANSFORMERS)
    return {"file": vision_weights_file(config.weights, config.sha256, name)}


# --------------------------------------------------------------------------- a repository or a folder


def _place(name: str, folder: bool, transformers: bool) -> tuple[str, str | None] | None:
    """Get the repository's id and revision, or the folder and None, that a name stands for; None for another name."""
    if match := HUB.fullmatch(name):
        return match["id"], match["revision"] or "main"
    if folder or name.startswith(("/", "./", "../", "~")) or Path(name).is_dir():
        path = Path(name).expanduser()
        if not path.is_dir():
            raise UserError(f"model.vision.name: {name}: no such folder")
        return str(path), None
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name):
        if transformers:
            return _place(f"hf-hub:{name}", False, False)
        raise UserError(f"model.vision.name: {name} is no folder here; a repository is written hf-hub:{name}")
    if ":" in name or "/" in name:
        raise UserError(f"model.vision.name: {name:.200}: write a name of timm, hf-hub:ORG/NAME or a folder")
    return None


def _read_place(place: str, revision: str | None, transformers: bool, load_weights: bool) -> Source:
    """Read the config of a repository or folder, and choose the library by its keys."""
    config = _json(place, "config.json", revision) or {}
    if "architecture" in config and not transformers:
        own = config.get("pretrained_cfg") or config
        options = {key: value for key, value in (config.get("model_args") or {}).items() if value is not None}
        options.pop("num_classes", None), options.pop("global_pool", None)
        check_options(options, f"model.vision.name: config.json of {place}: model_args")
        pictures, layout = _of_timm(own, options), "timm"
        source = Source("timm", str(config["architecture"]), options, pictures, reason="its config.json is of timm")
    elif "model_type" in config:
        kind, options = vision_options(config, place)
        pictures, layout = _of_transformers(options, _json(place, "preprocessor_config.json", revision) or {}), kind
        source = Source("transformers", kind, options, pictures, reason="its config.json is of Transformers")
        layout = "transformers"
    elif found := _json(place, "open_clip_config.json", revision):
        source, layout = _open_clip(found, place), "open_clip"
    else:
        if revision and not config:  # offline, or no such repository: says which
            with one_line(f"model.vision.name: {place}"):
                cached_file(place, "config.json", revision=revision)
        raise UserError(
            f"model.vision.name: {place}: no config.json with timm's architecture or Transformers' model_type, and no "
            "open_clip_config.json"
        )
    if not re.fullmatch(r"[\w.-]+", source.architecture):
        raise UserError(f"model.vision.name: {place}: {source.architecture!r:.60} is no name of an architecture")
    if not load_weights:
        return source
    file = _fetch(place, WEIGHTS[layout], revision, "model.vision.name")
    if file is None:
        raise UserError(
            f"model.vision.name: {place}: no {WEIGHTS[layout]}; other formats may hold code and are not read, "
            "docs/encoders.md tells how to convert one"
        )
    return source._replace(file=file, address=_address(place, file) if revision else None)


def _open_clip(config: dict[str, Any], place: str) -> Source:
    """Read the vision half of a model of open_clip, where it is one of timm's."""
    vision = config.get("model_cfg", {}).get("vision_cfg", {})
    if not isinstance(vision.get("timm_model_name"), str):
        raise UserError(f"model.vision.name: {place}: its image encoder is open_clip's own, not one of timm's")
    own = {key: value for key, value in (config.get("preprocess_cfg") or {}).items() if key in ("mean", "std")}
    size = vision.get("image_size") or 224
    own |= {"input_size": [3, size, size] if isinstance(size, int) else [3, *size], "interpolation": "bicubic"}
    name = vision["timm_model_name"]
    return Source("timm", name, {}, _of_timm(own, {}), reason="its open_clip_config.json names a model of timm")


def _json(place: str, name: str, revision: str | None) -> dict[str, Any] | None:
    file = _fetch(place, name, revision, "model.vision.name")
    if file is None:
        return None
    with one_line(f"model.vision.name: {place}: {name}"):
        if file.stat().st_size > 2 << 20:
            raise ValueError("larger than 2 MiB")
        values = parse_json(file.read_bytes(), longest=100_000)
        if not isinstance(values, dict):
            raise ValueError("is no JSON object")
        return values


def _fetch(place: str, name: str, revision: str | None, key: str) -> Path | None:
    """Get a file of a folder or of a repository on the Hub; None if it has no such file."""
    if revision is None:
        return path if (path := Path(place) / name).is_file() else None
    with one_line(f"{key}: cannot fetch {name} of {place}"):
        found = cached_file(place, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _address(repository: str, file: Path) -> str:
    usual = "" if file.name == "model.safetensors" else f"/{file.name}"
    return f"hf-hub:{repository}@{file.parent.name}{usual}"  # a snapshot's folder is named by its commit


# ------------------------------------------------------------------------------------------ pictures


def _of_timm(config: Mapping[str, Any], options: Mapping[str, Any]) -> Pictures:
    """Read how pictures are prepared from timm's config of weights."""
    try:
        channels, _, size = config.get("input_size") or (3, 224, 224)
        mean, std = (list(config.get(key) or [0.5]) for key in ("mean", "std"))
        size = options.get("img_size") or size
        return Pictures.of(
            mean, std, size=int(size[0] if isinstance(size, list | tuple) else size),
            interpolation=FILTERS.get(str(config.get("interpolation")), "area"),
            channels=int(options.get("in_chans", channels)),
        )  # fmt: skip
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        raise UserError("model.vision.name: its config's mean, std or input_size are no numbers") from None


def _of_transformers(options: Mapping[str, Any], processor: Mapping[str, Any]) -> Pictures:
    """Read how pictures are prepared from the config of a Transformers image processor, or guess by the model's."""
    try:
        size = processor.get("crop_size") or processor.get("size") or options.get("image_size") or 224
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge") or options.get("image_size") or 224
        size = size[0] if isinstance(size, list | tuple) else size
        mean, std = (list(processor.get(key) or [0.5]) for key in ("image_mean", "image_std"))
        if processor.get("do_normalize") is False:
            mean, std = [0.0], [1.0]
        factor = 255 * float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 255.0
        resizing = RESAMPLING.get(processor.get("resample", 2), "bilinear")  # type: ignore[arg-type]
        return Pictures.of(
            [value / factor for value in mean], [value / factor for value in std], size=int(size),
            interpolation=resizing, channels=int(options.get("num_channels", 3)),
        )  # fmt: skip
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        raise UserError("model.vision.name: its preprocessor_config.json holds what is no number") from None
