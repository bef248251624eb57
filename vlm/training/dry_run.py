"""`clinical-vlm train --dry-run`: run one step at the real shapes and predict the memory of the whole batch.

Beyond a few cases the peak memory of a step is linear in the batch size: peak(B) = fixed + B × case. Both terms are
measured at a quarter and a half of the batch, of the training split's longest case. `predicted_gpu` converts them to
4 bits and bf16.
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlm.config import Config
from vlm.data.collate import Batch
from vlm.data.dataset import CaseDataset
from vlm.model.bases.quantization import comes_quantised, values_of
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.llm import word_embeddings
from vlm.training.memory import CUDA_CONTEXT, GIB, MIB, TRAINED_BYTES, StepMemory, packed_bytes
from vlm.training.micro_batch import choose_micro_batch, longest_cases, one_step


class Allocations(TorchDispatchMode):
    """Count live and peak bytes of tensors created in its context, by storage, so that views count nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _has_storage(leaf)}
        for leaf in tree_leaves(made):
            if _has_storage(leaf) and leaf.untyped_storage()._cdata not in given:
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _has_storage(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided


def measure_step(model: ClinicalVLM, batch_of: Callable[[int], Batch], cases: int) -> StepMemory:
    """Measure the memory of a step by a forward and backward pass over a quarter and a half of `cases`."""
    few, more = max(1, cases // 4), max(2, cases // 2)
    step_peak(model, batch_of(few))  # warm-up: one-time allocations are not part of a step
    low, high = (step_peak(model, batch_of(count)) for count in (few, more))
    case = (high - low) / (more - few)
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    training = sum(TRAINED_BYTES * p.numel() for p in model.trainable_parameters().values())
    gradients = training / 3
    return StepMemory(weights, training, max(low - few * case - gradients, 0), case)


def step_peak(model: ClinicalVLM, batch: Batch) -> float:
    """Measure the peak bytes allocated by one forward and backward pass, gradients included."""
    model.zero_grad(set_to_none=True)
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        one_step(model, batch)
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with Allocations() as made:
            one_step(model, batch)
        peak = made.peak
    model.zero_grad(set_to_none=True)
    return peak


def predicted_gpu(model: ClinicalVLM, config: Config, here: StepMemory) -> StepMemory:
    """Predict the memory of the same step on a GPU in bf16, with the language model in the config's precision.

    Activations and the language model take two bytes a value, quantised ones as `packed_bytes` says. Trainable weights
    stay fp32. A quantised layer is dequantized on use, so one dequantized layer is added.
    """
    quantised = config.model.llm.quantization != "none" and config.model.llm.dequantize != "always"
    vocabulary = {id(layer.weight) for layer in (model.base.get_input_embeddings(), model.base.get_output_embeddings())}
    weights, largest = 0.0, 0
    for name, value in model.named_parameters():
        count = values_of(value)
        if value.requires_grad:
            weights += 4 * count
        elif name.startswith("llm.") and quantised and value.ndim == 2 and id(value) not in vocabulary:
            weights += count * packed_bytes(config.model.llm)
            largest = max(largest, count)
        else:
            weights += (2 if name.startswith("llm.") else 4) * count
    halves = word_embeddings(model.base).element_size() / 2
    return StepMemory(weights, here.training, here.fixed / halves + 2 * largest, here.case / halves)


def dry_run(model: ClinicalVLM, config: Config, dataset: CaseDataset) -> list[str]:
    """Run one step, and report in lines its time and memory and the memory of the whole batch."""
    batch_of = longest_cases(model, dataset)
    micro_batch = choose_micro_batch(model, config.train, batch_of)
    cases = micro_batch.value
    model.train()
    here = measure_step(model, batch_of, cases)
    start = time.perf_counter()
    one_step(model, batch_of(2))
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    tokens = batch_of(1)["input_ids"].shape[1]
    shape = f"2 cases of {tokens} tokens, the longest of the training split"
    lines = [f"one forward and backward of {shape}: {seconds:.2f} s",
             f"memory on this {model.device.type}: {_in_words(here, cases)}"]  # fmt: skip
    if config.train.micro_batch_size == "auto":
        lines.insert(0, f"micro batch: {cases} ({micro_batch.reason})")
    if model.device.type != "cuda":
        there = _in_words(predicted_gpu(model, config, here), cases)
        lines.append(f"predicted on a GPU in bf16: {there}, and CUDA's own {CUDA_CONTEXT / GIB:.1f} GiB")
        if config.model.llm.quantization != "none" and not comes_quantised(model.base):
            exact = replace(config, model=replace(config.model, llm=replace(config.model.llm, quantization="none")))
            peak = predicted_gpu(model, exact, here).peak(cases)
            lines.append(f"the same beside unquantised weights (model.llm.quantization: none): {peak / GIB:.2f} GiB")
    return lines


def _in_words(memory: StepMemory, cases: int) -> str:
    parts = {"weights": memory.weights, "gradients and AdamW": memory.training, "a step": memory.fixed,
             "each case": memory.case}  # fmt: skip
    said = ", ".join(f"{name} {size / MIB:,.0f} MiB" for name, size in parts.items())
    return f"{said}; with {cases} cases at once {memory.peak(cases) / GIB:.2f} GiB"
