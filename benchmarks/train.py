"""Training steps against a plain recipe on the same model, cases and batch; what a step must do, and what it takes.

    python -m benchmarks.train --json train.json

The plain recipe runs the 4-bit layers as they come, the CNN at every step, and the vocabulary over the whole padded
sequence, its cases as they are drawn. Losses are compared step by step in fp32 first; then all take turns: both recipes
in fp32 and, where the machine multiplies bf16, in bf16. Arguments that are not its own go to the config, such as
`--data.root`.
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.machine import Timing, in_turn, matmul_rate, micro_batch, timed
from vlm.config import AugmentConfig, Config, DropoutConfig
from vlm.config.parsing import parse_config
from vlm.data.cohort import Cohort
from vlm.data.collate import IGNORED, Batch, Collator
from vlm.data.ingest.sources import load_cohort
from vlm.device import multiplies_bf16
from vlm.inference.features import keep_features
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.loss import joint_loss, label_loss
from vlm.training.optimizer import parameter_groups
from vlm.training.run import build_model, case_dataset

CPU = torch.device("cpu")


def model_of(config: Config, cohort: Cohort, dequantize: Literal["always", "never"], dtype: torch.dtype) -> ClinicalVLM:
    llm = replace(config.model.llm, dequantize=dequantize)
    return build_model(replace(config, model=replace(config.model, llm=llm)), cohort, CPU, dtype).train()


def plain_loss(model: ClinicalVLM, batch: Batch, labels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """As a first version would be written: every logit of every place. The counts are those of the whole step."""
    embeddings, encoded = model.embed_prompt(batch)
    logits = model.llm(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False).logits
    places, words = logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten()
    text = F.cross_entropy(places, words, ignore_index=IGNORED, reduction="sum") / tokens
    return joint_loss(0.5, label_loss(encoded.logits.float(), batch["targets"]).mean(labels), text)


def our_loss(model: ClinicalVLM, batch: Batch, labels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return model(**batch, alpha=0.5, label_count=labels, token_count=tokens).loss


class Recipe:
    """One way to make steps, over the same batches in the same order."""

    def __init__(
        self,
        config: Config,
        cohort: Cohort,
        plain: bool,
        dtype: torch.dtype = torch.float32,
        reverse: bool = False,
    ) -> None:
        self.model = model_of(config, cohort, "never" if plain else "always", dtype)
        self.loss = plain_loss if plain else our_loss
        self.by_length, self.reverse, self.train = not plain, reverse, config.train
        training = case_dataset(config, self.model.spec, cohort, "train")
        if not plain:
            keep_features(self.model, config, [training])
        self.dataset, self.collate = training, Collator(self.model.prompt)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config.train))
        self.warm_up = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1, (step + 1) / (config.train.warmup_steps + 1))
        )
        self.place = 0

    def batches(self, size: int) -> list[Batch]:
        """The next cases of one step, in batches as they fit: ours are sorted by the length of their reports."""
        rows = np.arange(self.place, self.place + size)
        self.place = (self.place + size) % (len(self.dataset) - size)
        if self.by_length:
            rows = rows[np.argsort(-self.dataset.report_lengths[rows], kind="stable")]
        if self.reverse:
            rows = rows[::-1]
        micro = micro_batch(self.train)
        parts = [rows[start : start + micro] for start in range(0, size, micro)]
        return [self.collate([self.dataset[int(index)] for index in part]) for part in parts]

    def look(self, size: int, learn: bool = False) -> float:
        """The loss of the next cases; with `learn` its gradients too."""
        batches = self.batches(size)
        labels = torch.stack([(~torch.isnan(batch["targets"])).sum() for batch in batches]).sum()
        tokens = torch.stack([(batch["labels"][:, 1:] != IGNORED).sum() for batch in batches]).sum()
        total = 0.0
        for batch in batches:
            with self.model.autocast(), torch.set_grad_enabled(learn):
                loss = self.loss(self.model, batch, labels, tokens)
            if learn:
                loss.backward()
            total += float(loss.detach())
        return total

    def step(self, size: int) -> float:
        loss = self.look(size, learn=True)
        torch.nn.utils.clip_grad_norm_(self.model.trainable_parameters().values(), self.train.max_grad_norm)
        self.optimizer.step()
        self.warm_up.step()
        self.optimizer.zero_grad()
        return loss

    def become(self, other: "Recipe") -> None:
        """Take the weights of another."""
        with torch.no_grad():
            given = other.model.trainable_parameters()
            for name, value in self.model.trainable_parameters().items():
                value.copy_(given[name])


def compare(config: Config, cohort: Cohort, size: int, repeats: int, check_steps: int, check_size: int) -> dict:
    """Both recipes on the same cases: how far their losses are apart in fp32, and seconds a step of each.

    `difference` is that of both losses at the plain recipe's weights, at each of its steps. Left to themselves, two
    recipes that differ in their last bits part, since AdamW divides small gradients by their size: `apart` says how
    far, and `rounding` how far the plain recipe is from itself with the cases of each batch in reverse, which are the
    same sums in another order.
    """
    recipes = {name: Recipe(config, cohort, name == "plain") for name in ("plain", "ours")}
    same, reverse = Recipe(config, cohort, plain=False), Recipe(config, cohort, plain=True, reverse=True)
    losses = np.empty((check_steps, 4))
    for step in range(check_steps):
        same.become(recipes["plain"])
        losses[step] = [same.look(check_size), *(r.step(check_size) for r in (*recipes.values(), reverse))]
    difference, apart, rounding = (float(np.abs(losses[:, 1] - losses[:, other]).max()) for other in (0, 2, 3))
    del same, reverse
    if multiplies_bf16():
        recipes |= {f"{name}_bf16": Recipe(config, cohort, name == "plain", torch.bfloat16) for name in tuple(recipes)}
    for recipe in recipes.values():
        recipe.place = 0
    timings = in_turn({name: partial(recipe.step, size) for name, recipe in recipes.items()}, repeats)
    return {"difference": difference, "apart": apart, "rounding": rounding, "timings": timings, "recipes": recipes}


def speedups(timings: dict[str, Timing]) -> dict[str, float]:
    """How many times as fast: in fp32, in bf16, and ours in bf16 against plain fp32."""
    found = {"": timings["plain"].median / timings["ours"].median}
    if "ours_bf16" in timings:
        found["_bf16"] = timings["plain_bf16"].median / timings["ours_bf16"].median
        found["_bf16_to_plain_fp32"] = timings["plain"].median / timings["ours_bf16"].median
    return found


def trunk_share(recipe: Recipe, size: int) -> dict[str, float]:
    """The trunk's forward and backward pass against its operations at the machine's own matrix product rate."""
    model = recipe.model
    batch = max(recipe.batches(size), key=lambda batch: batch["input_ids"].numel())
    with torch.no_grad():
        embeddings, _ = model.embed_prompt(batch)
    embeddings.requires_grad_(True)

    def run() -> None:
        model.trunk(embeddings, batch["attention_mask"]).sum().backward()
        model.zero_grad()

    seconds = timed(run).median
    config = model.base.config
    linear = sum(
        p.numel() for n, p in model.base.named_parameters() if p.ndim == 2 and "layers." in n and "lora" not in n
    )
    tokens = embeddings.shape[0] * embeddings.shape[1]
    # Forward, and backward to the inputs: the weights are frozen, LoRA's own products are below 2 % of it.
    operations = 4 * linear * tokens
    rate = matmul_rate(tokens, config.hidden_size, config.intermediate_size)
    return {"trunk_s": seconds, "floor_s": operations / rate, "tokens": tokens, "matmul_gflops": rate / 1e9}


def profile(recipe: Recipe, size: int) -> str:
    """The operations in which one step's time goes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        recipe.step(size)
    return seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=48)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check_steps", type=int, default=20, help="steps over which the losses are compared")
    parser.add_argument("--check_batch", type=int, default=8)
    parser.add_argument("--profile", action="store_true", help="print where a step's time goes")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments, overrides = parser.parse_known_args()
    config, _ = parse_config(["--config", arguments.config, *overrides])
    config = replace(
        config,
        data=replace(config.data, augment=AugmentConfig(0, 0, 0, 0), dropout=DropoutConfig(0, 0, 0)),
    )
    cohort = load_cohort(config.data)
    flat: dict[str, Any] = {}
    columns = ("CNN", "precision", "plain, a step", "ours", "times as fast",
               "losses differ by", "drift", "drift of rounding")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for name, trains in (("trained", True), ("frozen", False)):
        vision = replace(config.model.vision, train=trains, frozen_stages=config.model.vision.frozen_stages * trains)
        job = replace(config, model=replace(config.model, vision=vision))
        found = compare(job, cohort, arguments.batch, arguments.repeats, arguments.check_steps, arguments.check_batch)
        timings, ratios = found["timings"], speedups(found["timings"])
        checked = [f"{found[key]:.1e}" for key in ("difference", "apart", "rounding")]
        for end, check in (("", checked), ("_bf16", ["", "", ""])):
            if end in ratios:
                row = [name, end[1:] or "fp32", timings[f"plain{end}"], timings[f"ours{end}"], f"{ratios[end]:.2f}"]
                print("| " + " | ".join(map(str, [*row, *check])) + " |", flush=True)
        flat |= {f"train.speedup_{name}_cnn{end}": ratio for end, ratio in ratios.items()}
        flat |= {f"train.step_{name}_cnn_{key}_s": timing.median for key, timing in timings.items()}
        flat |= {f"train.loss_{key}_{name}_cnn": found[key] for key in ("difference", "apart", "rounding")}
        if arguments.profile:
            print(profile(list(found["recipes"].values())[-1], arguments.batch))
    trunk = trunk_share(found["recipes"]["ours"], arguments.batch)
    flat |= {f"train.{name}": value for name, value in trunk.items()}
    flat["train.matmul_fraction"] = trunk["floor_s"] / trunk["trunk_s"]
    print(f"trunk: {trunk['trunk_s']:.2f} s for {trunk['tokens']} tokens, of which its matrix products take "
          f"{trunk['floor_s']:.2f} s at the measured {trunk['matmul_gflops']:.0f} GFLOP/s: "
          f"{flat['train.matmul_fraction']:.0%}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
