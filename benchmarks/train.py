"""Training steps against a plain recipe on the same model, cases and batch; what a step must do, and what it takes.

    python -m benchmarks.train --json train.json

The plain recipe runs the 4-bit layers as they come, the CNN at every step, and the vocabulary over the whole padded
sequence. Losses are compared step by step first; then both take turns.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.machine import in_turn, matmul_rate, timed
from vlm.cli import parse_config
from vlm.config import Config
from vlm.data.cohort import Cohort
from vlm.data.collate import IGNORED, Batch, Collator
from vlm.data.sources import load_cohort
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.loss import joint_loss, label_loss
from vlm.training.features import keep_features
from vlm.training.run import build_model, case_dataset
from vlm.training.trainer import parameter_groups

CPU = torch.device("cpu")


def model_of(config: Config, cohort: Cohort, unpack: str) -> ClinicalVLM:
    llm = replace(config.model.llm, unpack=unpack)
    model = build_model(replace(config, model=replace(config.model, llm=llm)), cohort, CPU, torch.float32)
    return model.train()


def plain_loss(model: ClinicalVLM, batch: Batch) -> torch.Tensor:
    """As a first version would be written: every logit of every place."""
    encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
    embeddings = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)
    logits = model.llm(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False).logits
    text = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
    return joint_loss(0.5, label_loss(encoded.logits.float(), batch["targets"]).mean(), text)


def our_loss(model: ClinicalVLM, batch: Batch) -> torch.Tensor:
    return model(**batch, alpha=0.5).loss


class Recipe:
    """One way to make steps, over the same batches in the same order."""

    def __init__(self, config: Config, cohort: Cohort, plain: bool) -> None:
        self.model = model_of(config, cohort, "never" if plain else "always")
        self.loss = plain_loss if plain else our_loss
        training = case_dataset(config, self.model.spec, cohort, "train")
        if not plain:
            keep_features(self.model, config, [training])
        self.dataset, self.collate = training, Collator(self.model.prompt)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config.train))
        self.place = 0

    def step(self, size: int) -> float:
        rows = range(self.place, self.place + size)
        self.place = (self.place + size) % (len(self.dataset) - size)
        loss = self.loss(self.model, self.collate([self.dataset[index] for index in rows]))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)


def compare(config: Config, cohort: Cohort, size: int, repeats: int, check_steps: int, check_size: int) -> dict:
    """Both recipes on the same cases: the largest difference of their losses, and seconds a step."""
    recipes = {name: Recipe(config, cohort, name == "plain") for name in ("plain", "ours")}
    differences = [
        abs(recipes["plain"].step(check_size) - recipes["ours"].step(check_size)) for _ in range(check_steps)
    ]
    timings = in_turn({name: lambda r=recipe: r.step(size) for name, recipe in recipes.items()}, repeats)
    return {"difference": max(differences), "timings": timings, "recipe": recipes["ours"]}


def trunk_share(recipe: Recipe, size: int) -> dict[str, float]:
    """The trunk's forward and backward pass against its operations at the machine's own matrix product rate."""
    model = recipe.model
    batch = recipe.collate([recipe.dataset[index] for index in range(size)])
    with torch.no_grad():
        encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
        embeddings = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)
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
    arguments = parser.parse_args()
    config, _ = parse_config(["--config", arguments.config])
    config = replace(
        config, data=replace(config.data, dropout=replace(config.data.dropout, image=0, vitals=0, value=0))
    )
    cohort = load_cohort(config.data)
    flat: dict[str, Any] = {}
    print(
        "| CNN | plain, a step | ours | times as fast | largest difference of losses |\n| --- | --- | --- | --- | --- |"
    )
    for name, trains in (("trained", True), ("frozen", False)):
        vision = replace(config.model.vision, train=trains, frozen_stages=config.model.vision.frozen_stages * trains)
        job = replace(config, model=replace(config.model, vision=vision))
        found = compare(job, cohort, arguments.batch, arguments.repeats, arguments.check_steps, arguments.check_batch)
        plain, ours = found["timings"]["plain"], found["timings"]["ours"]
        print(
            f"| {name} | {plain} | {ours} | {plain.median / ours.median:.2f} | {found['difference']:.1e} |", flush=True
        )
        flat |= {f"train.speedup_{name}_cnn": plain.median / ours.median, f"train.step_{name}_cnn_s": ours.median,
                 f"train.loss_difference_{name}_cnn": found["difference"]}  # fmt: skip
        if arguments.profile:
            print(profile(found["recipe"], arguments.batch))
    trunk = trunk_share(found["recipe"], arguments.batch)
    flat |= {f"train.{name}": value for name, value in trunk.items()}
    flat["train.matmul_fraction"] = trunk["floor_s"] / trunk["trunk_s"]
    print(f"trunk: {trunk['trunk_s']:.2f} s for {trunk['tokens']} tokens, of which its matrix products take "
          f"{trunk['floor_s']:.2f} s at the measured {trunk['matmul_gflops']:.0f} GFLOP/s: "
          f"{flat['train.matmul_fraction']:.0%}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
