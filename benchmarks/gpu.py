"""Training steps on a GPU against a plain Transformers, PEFT and bitsandbytes loop, offline, on random weights.

    python -m benchmarks.gpu --shapes 1B 8B --json gpu.json

Both loops take turns on the same frozen model, cases and LoRA. The plain one runs padded batches and computes every
logit of every place, as `AutoModelForCausalLM(..., labels=...)` does. Batches have 4 cases of 512 tokens, or lengths
spread as those of real reports are, so that half of a batch is padding. In fp32, on a small model, the
losses of CPU and GPU are compared. It runs on a CPU as well (`--device cpu --shapes tiny`), to be tried.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import finished, in_turn, matmul_rate
from benchmarks.random_base import SHAPES, byte_tokenizer, random_base
from benchmarks.train import plain_loss
from vlm.config import Config, TrainConfig, VitalConfig
from vlm.config.parsing import parse_config
from vlm.data.case import CaseSpec, random_cases
from vlm.data.collate import IGNORED, Batch, Collator, to_device
from vlm.data.images.image import ImageSpec
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics
from vlm.device import choose_device
from vlm.model.bases.lora_targets import fit_targets
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.kernels import apply_kernels
from vlm.training.optimizer import make_optimizer

CASES, LONGEST = 4, 512
"""Cases of a batch and tokens of the longest, prompt included."""
GIB = 2**30


def spec_of(image_size: int) -> CaseSpec:
    """Describe cases with one label, and the vitals of the source paper."""
    vitals = tuple(VitalConfig(name, unit) for name, unit in
                   (("age", "years"), ("glucose", "mmol/L"), ("systolic", "mmHg"), ("diastolic", "mmHg")))  # fmt: skip
    centre, scale = (60.0, 6.0, 125.0, 75.0), (15.0, 2.0, 15.0, 10.0)
    edges = tuple(tuple(c + s * step for step in (-2.0, -1.0, 0.0, 1.0, 2.0))
                  for c, s in zip(centre, scale, strict=True))  # fmt: skip
    return CaseSpec(ImageSpec(image_size), VitalsSchema(vitals), VitalsStatistics(centre, scale, edges), ("finding",))


def model_of(config: Config, shape: str, device: torch.device, dtype: torch.dtype) -> ClinicalVLM:
    """Build the model of a config on a random base."""
    llm = random_base(shape, device, dtype, config.model.llm.quantization)
    part = fit_targets(llm, replace(config.model.llm, base=f"random-{shape}", lora_dropout=0.0))  # to compare losses
    parts = replace(config.model, llm=part, vision=replace(config.model.vision, weights="random"))
    torch.manual_seed(0)
    spec = spec_of(config.data.image_size)
    return ClinicalVLM(parts, spec, llm, byte_tokenizer(), load_vision_weights=False).to(device).train()


def lengths_of(kind: str, cases: int, longest: int, seed: int) -> list[int]:
    """Draw the lengths of reports: all of the longest, or lognormal as in collections of reports (half is padding)."""
    if kind == "full":
        return [longest] * cases
    drawn = np.random.default_rng(seed).lognormal(mean=np.log(longest / 4), sigma=0.8, size=cases)
    return [int(length) for length in np.clip(drawn, 16, longest)]


def batch_of(model: ClinicalVLM, lengths: list[int], longest: int) -> Batch:
    """Build a batch whose cases have these lengths, cut to `longest` tokens, prompt included."""
    prompt = model.prompt.evidence_tokens + sum(map(len, model.prompt.ids()))
    cases = []
    for case, length in zip(random_cases(model.spec, len(lengths)), lengths, strict=True):
        text = "No opacity in either lung. " * (length // 20 + 1)
        targets = torch.ones(len(model.spec.labels))
        cases.append(case | {"report": text[: max(8, min(length, longest) - prompt - 1)], "targets": targets})
    return to_device(Collator(model.prompt)(cases), model.device)


def our_step(model: ClinicalVLM, batch: Batch) -> torch.Tensor:
    with model.autocast():
        return model(**batch, alpha=0.5).loss


def plain_step(model: ClinicalVLM, batch: Batch) -> torch.Tensor:
    """As a first version would be written: padded, with every logit of every place."""
    labels, tokens = (~torch.isnan(batch["targets"])).sum(), (batch["labels"][:, 1:] != IGNORED).sum()
    with model.autocast():
        return plain_loss(model, batch, labels, tokens)


class Loop:
    """Make whole steps, optimizer included, with one of the two losses."""

    def __init__(self, model: ClinicalVLM, loss: Any, batches: list[Batch], packing: bool, train: TrainConfig) -> None:
        self.model, self.loss, self.batches, self.packing = model, loss, batches, packing
        self.optimizer, self.turn, self.peak = make_optimizer(model, train), 0, 0

    def step(self) -> float:
        """Make one step on the next batch; returns the loss."""
        self.model.packing = self.packing
        batch = self.batches[self.turn % len(self.batches)]
        self.turn += 1
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loss = self.loss(self.model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.trainable_parameters().values(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.model.device.type == "cuda":
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        return float(loss.detach())


def compare(model: ClinicalVLM, config: Config, kind: str, repeats: int, longest: int) -> dict[str, float]:
    """Time both loops in turn on the same batches; returns seconds, tokens a second, rates and peaks."""
    packing = apply_kernels(model, config.train)["packing"]
    batches = [batch_of(model, lengths_of(kind, CASES, longest, seed), longest) for seed in range(4)]
    difference = 0.0
    for batch in batches:
        model.packing = packing.value
        with torch.no_grad():
            ours, plain = float(our_step(model, batch)), float(plain_step(model, batch))
        difference = max(difference, abs(ours - plain) / abs(plain))
    loops = {"ours": Loop(model, our_step, batches, packing.value, config.train),
             "plain": Loop(model, plain_step, batches, False, config.train)}  # fmt: skip
    timings = in_turn({name: finished(loop.step) for name, loop in loops.items()}, repeats)
    given, padded = (float(np.mean([size(b) for b in batches])) for size in (_tokens, lambda b: b["input_ids"].numel()))
    base = model.base.config
    linear = sum(layer.in_features * layer.out_features for path, layer in model.base.named_modules()
                 if hasattr(layer, "in_features") and ".layers." in path and "lora_" not in path
                 and not hasattr(layer, "base_layer"))  # fmt: skip
    passes = 3 if config.model.llm.activation_checkpointing else 2  # forward, backward to the inputs, once more forward
    dtype = next(model.base.get_input_embeddings().parameters()).dtype
    rate = matmul_rate(int(padded), base.hidden_size, base.intermediate_size, model.device, dtype)
    seconds = timings["ours"].median
    return {
        "step_ours_s": seconds,
        "step_plain_s": timings["plain"].median,
        "speedup": timings["plain"].median / seconds,
        "tokens_per_s": given / seconds,
        "padding": 1 - given / padded,
        "matmul_fraction": 2 * passes * linear * given / seconds / rate,
        "matmul_tflops": rate / 1e12,
        "loss_difference": difference,
        "packing": float(packing.value),
        **({f"peak_{name}_gib": loop.peak / GIB for name, loop in loops.items()} if loops["ours"].peak else {}),
    }


def _tokens(batch: Batch) -> float:
    return float(batch["attention_mask"].sum())


def cpu_and_gpu(config: Config, device: torch.device, shape: str, longest: int) -> float:
    """Compare the losses of a small model in fp32 on the CPU and on the device, with the same weights, relatively."""
    small = replace(config, model=replace(config.model, llm=replace(config.model.llm, quantization="none")))
    here = model_of(small, shape, torch.device("cpu"), torch.float32)
    there = model_of(small, shape, device, torch.float32)
    there.load_state_dict(here.state_dict())
    losses = [
        float(our_step(m, batch_of(m, lengths_of("real", CASES, longest, 0), longest)).detach()) for m in (here, there)
    ]
    return abs(losses[0] - losses[1]) / abs(losses[0])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/single_gpu.yaml")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1B", "8B"])
    parser.add_argument("--device", help="cuda, xpu or cpu; what is there by default")
    parser.add_argument("--longest", type=int, default=LONGEST, help="tokens of the longest case")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", choices=SHAPES, default="135M", help="shape for the comparison of CPU and GPU")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments, overrides = parser.parse_known_args(argv)
    config, _ = parse_config(["--config", arguments.config, *overrides])
    device = torch.device(arguments.device) if arguments.device else choose_device().value
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, {config.model.llm.quantization}, {CASES} cases of {arguments.longest}")
    flat: dict[str, Any] = {"gpu.name": name}
    flat["gpu.cpu_gpu_loss_difference"] = cpu_and_gpu(config, device, arguments.small, arguments.longest)
    print(f"fp32 losses of CPU and {device.type} differ by {flat['gpu.cpu_gpu_loss_difference']:.1e}")
    for shape in arguments.shapes:
        model = model_of(config, shape, device, dtype)
        for kind in ("full", "real"):
            found = compare(model, config, kind, arguments.repeats, arguments.longest)
            flat |= {f"gpu.{shape}.{kind}.{key}": value for key, value in found.items()}
            print(
                f"{shape}, {kind} lengths:", ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True
            )
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
