"""Merge the LoRA into the base, as a plain Transformers folder for programs without LoRA support.

It is merged into the dequantised NF4 values that training used, never into 4-bit or the original base. The parts
before the language model are saved in `adapter/`, as an adapter with a zero LoRA, so that this package still drafts.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from vlm.adapter.folder import MERGED, load
from vlm.adapter.hub import open_adapter
from vlm.adapter.layout import FILES
from vlm.atomic import flush, make_folder, staged, write_manifest
from vlm.data.case import random_cases
from vlm.errors import UserError
from vlm.locks import locked
from vlm.model.bases.quantization import comes_quantised, is_packed_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm.model.clinical_vlm import ClinicalVLM

CASES = 8
"""Number of made-up cases on which the merged model is compared with the base and its LoRA."""

CONFIGS = ("config.json", "adapter_config.json")


class Parity(NamedTuple):
    """Hold the differences between the reloaded merged model and the base with its LoRA."""

    difference: float
    """Largest absolute difference of logits, at the end of the prompts and along the drafts."""
    spread: float
    """Standard deviation of the logits, for comparison."""
    same: int
    """Number of identical greedy drafts."""
    cases: int


class _Reference(NamedTuple):
    prompt: torch.Tensor
    """Embeddings of a prompt, T × H."""
    ids: torch.Tensor
    """Token ids of the greedy draft, N."""
    logits: torch.Tensor
    """Logits, (N + 1) × V."""


def merge(adapter: str, out: Path, base: str | None = None, revision: str | None = None, most: int = 40) -> Parity:
    """Write the merged model to a new folder atomically, and compare it with the base and its LoRA.

    Raises `UserError` as `load` does, for an existing folder, and for a base that stays in 4 bits.
    """
    from vlm.model.bases.base_files import base_digest, settings_digest
    from vlm.model.bases.loading import load_causal_lm

    if out.exists():
        raise UserError(f"{out}: is there already; name a new folder")
    opened = open_adapter(adapter, revision)
    model = load(opened, base=base, device=torch.device("cpu"), dtype=torch.float32)
    refuse_packed(model, "merge")
    with torch.no_grad():
        references = [_generate(model.base, model, prompt, most) for prompt in _prompts(model)]  # type: ignore[arg-type]
    with locked(out), staged(out, manifest=False) as staging:
        plain = model.llm.merge_and_unload()  # type: ignore[operator]
        plain.config.update({MERGED: True})
        plain.save_pretrained(staging)
        model.tokenizer.save_pretrained(staging)
        written = str(staging)
        hashes = {"base_sha256": base_digest(written, None), "base_settings_sha256": settings_digest(written, None)}
        _write_evidence(opened.path, staging / "adapter", out, hashes)
        merged = load_causal_lm(written, dtype=torch.float32)
        with torch.no_grad():
            parity = _compare(merged, model, references, most)
        for file in staging.rglob("*"):
            flush(file)
    return parity


def refuse_packed(model: "ClinicalVLM", what: str) -> None:
    """Raise `UserError` if the base was not dequantised, as the adapter's config may ask or the base may come."""
    if any(is_packed_value(parameter) for parameter in model.llm.parameters()) or any(
        hasattr(module, "qweight") for module in model.llm.modules()
    ):
        method = comes_quantised(model.base)
        why = f"the base comes quantised by {method}" if method else "the adapter's config keeps the base packed"
        raise UserError(f"{what}: {why}{'' if method else ' (dequantize: never)'}")


def _write_evidence(adapter: Path, folder: Path, base: Path, hashes: dict[str, str]) -> None:
    """Write the adapter with a plain LoRA of rank 1 and zeros, for the merged base, which is loaded as it is."""
    from safetensors.torch import load_file, save_file

    make_folder(folder)
    for name in set(FILES) & {path.name for path in adapter.iterdir()}:
        shutil.copyfile(adapter / name, folder / name)
    lora = load_file(folder / "adapter_model.safetensors")
    first = {name: value[:1] if "lora_A" in name else value[:, :1] for name, value in lora.items() if value.ndim == 2}
    nothing = {name: torch.zeros_like(value, memory_format=torch.contiguous_format) for name, value in first.items()}
    save_file(nothing, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    ours, peft = (json.loads((folder / name).read_text(encoding="utf-8")) for name in CONFIGS)
    llm, place = ours["model"]["llm"], str(base.resolve())
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):  # plain from here on
        llm.pop(key, None)
        peft[key] = {} if key.endswith("pattern") else False
    llm |= {"base": place, "sha256": None, "revision": None, "quantization": "none", "lora_rank": 1}
    peft |= {"base_model_name_or_path": place, "revision": None, "r": 1}
    for name, values in zip(CONFIGS, (ours | hashes, peft), strict=True):
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(folder)


def _prompts(model: "ClinicalVLM") -> Iterator[torch.Tensor]:
    """Yield the embeddings (T × H) of the adapter's prompts on made-up cases, so that no patient data is needed."""
    from vlm.data.collate import Collator

    for example in random_cases(model.spec, CASES):
        batch = Collator(model.prompt, generation=True)([example])
        yield model.embed_prompt(batch)[0][0]


def _generate(llm: "PreTrainedModel", model: "ClinicalVLM", prompt: torch.Tensor, most: int) -> _Reference:
    """Generate a greedy draft after a prompt, with the logits of every step."""
    ids = llm.generate(  # type: ignore[operator]
        inputs_embeds=prompt[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=model.prompt.end_id,
        pad_token_id=model.prompt.pad_id,
    )[0]
    return _Reference(prompt, ids, _logits(llm, prompt, ids))


def _logits(llm: "PreTrainedModel", prompt: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    read = torch.cat([prompt, llm.get_input_embeddings()(ids)])[None]  # 1 × (T + N) × H
    return llm(inputs_embeds=read, logits_to_keep=len(ids) + 1).logits[0]  # type: ignore[no-any-return]


def _compare(merged: "PreTrainedModel", model: "ClinicalVLM", references: list[_Reference], most: int) -> Parity:
    logits = [_logits(merged, case.prompt, case.ids) for case in references]
    drafts = [_generate(merged, model, case.prompt, most).ids for case in references]
    return Parity(
        difference=max(float((ours - case.logits).abs().max()) for ours, case in zip(logits, references, strict=True)),
        spread=float(torch.cat([case.logits.flatten() for case in references]).std()),
        same=sum(torch.equal(ours, case.ids) for ours, case in zip(drafts, references, strict=True)),
        cases=len(references),
    )
