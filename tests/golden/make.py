"""Make a golden adapter and run: `python tests/golden/make.py FOLDER`, once a release, with that release's code.

It trains a model of a few kilobytes on a table of sixteen cases, so that later versions are held against what this
one wrote: `adapter/` must load and draft `expected.json`, `run/` must go on from its checkpoint with the same losses.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlm.atomic import write_manifest
from vlm.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    FusionConfig,
    LLMConfig,
    ModelConfig,
    RunConfig,
    SectionConfig,
    TableConfig,
    TrainConfig,
    VisionConfig,
    VitalConfig,
    VitalsConfig,
)
from vlm.pretrained import ClinicalVLM
from vlm.training.run import train
from vlm.training.run_folder import read_log

REPORTS = ["No opacity in either lung.", "Patchy opacity in the left lower zone.", "Glucose is elevated."]
CASES = [("0.png", {"glucose": 8.7, "bp": "145/90"}), ("5.png", {"glucose": 5.1, "sex": "F"}), (None, {"bp": "120/80"})]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
STEPS, ON = 90, 100


def write_base(folder: Path) -> None:
    """A Llama of one small layer with random weights, and a byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": 300, "special_tokens": special, "initial_alphabet": letters, "show_progress": False}
    bpe.train_from_iterator(REPORTS, trainers.BpeTrainer(**options))
    marks = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **marks)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def write_data(root: Path) -> None:
    """Sixteen cases of as many patients; the odd ones have a bright left lower quarter."""
    (root / "images").mkdir(parents=True)
    lines = ["case,patient,image,glucose,bp,sex,opacity,findings,split"]
    rng = np.random.default_rng(0)
    for number in range(16):
        picture = np.kron(rng.integers(40, 120, (4, 4), dtype=np.uint8), np.ones((8, 8), np.uint8))
        picture[16:, 16:] += np.uint8(100 * (number % 2))
        cv2.imwrite(str(root / "images" / f"{number}.png"), picture)
        image = f"{number}.png" if number % 8 != 6 else ""
        split = ("train", "train", "train", "test", "validation")[number % 5]
        lines.append(f"c{number},p{number},{image},{4 + number % 7}.5,{110 + 3 * number}/{70 + number},"
                     f"{'FM'[number // 2 % 2]},{number % 2},{REPORTS[number % 2]},{split}")  # fmt: skip
    (root / "cases.csv").write_text("\n".join(lines) + "\n")


def write_cnn(file: Path) -> None:
    """The CNN's weights, rounded to bf16 so that the adapter can hold them in half the room."""
    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet", num_classes=0, global_pool="").state_dict()
    save_file({name: _rounded(value).contiguous() for name, value in state.items()}, file)


def _rounded(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.bfloat16).to(value.dtype) if value.is_floating_point() else value


def job() -> Config:
    """Paths are relative to the golden folder."""
    vitals: list[VitalConfig | str] = [
        VitalConfig("glucose", "mmol/L", plausible=[1, 50], reference=[3.9, 7.8]),
        VitalConfig("systolic", "mmHg", plausible=[40, 300], reference=[90, 139]),
        VitalConfig("diastolic", "mmHg", plausible=[20, 200], reference=[60, 89]),
        VitalConfig("sex", categories=["F", "M"]),
    ]
    table = TableConfig(images="images", id="case", patient="patient", split="split", labels=["opacity"],
                        vitals=vitals, report=[SectionConfig("findings", ["image"], REPORTS[0])])  # fmt: skip
    return Config(
        run=RunConfig(name="run", folder="."),
        data=DataConfig(source="table", root="data", image_size=32, table=table),
        model=ModelConfig(
            llm=LLMConfig(base="base", quantization="none", lora_rank=1, lora_targets=["q_proj", "v_proj"]),
            vision=VisionConfig("test_efficientnet", weights="cnn.safetensors", train=False, grid=1, summary_grid=1),
            vitals=VitalsConfig(tokens=1, bins=2),
            fusion=FusionConfig(size=4),
        ),
        train=TrainConfig(max_steps=STEPS, batch_size=4, micro_batch_size=4, learning_rate=1e-2, warmup_steps=1,
                          lora_learning_rate=1e-2, log_steps=5, eval_steps=30, keep_checkpoints=1, threads=1,
                          schedule="constant_with_warmup", precision="fp32"),
        evaluation=EvaluationConfig(batch_size=8, max_new_tokens=2, bootstrap_draws=5, ablation=False),
    )  # fmt: skip


def main(folder: Path) -> None:
    """Train, halve the adapter's CNN, write down what is drafted and what the next steps lose."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    write_base(Path("base"))
    write_data(Path("data"))
    write_cnn(Path("cnn.safetensors"))
    train(job())
    shutil.move("run/adapter", "adapter")
    shutil.copytree("run", "kept")
    train(replace(job(), train=replace(job().train, max_steps=ON)), resume=True)
    losses = [row for row in read_log(Path("run/log.jsonl")) if row["step"] > STEPS and "loss_ce" in row]
    shutil.rmtree("run")
    shutil.move("kept", "run")
    tensors = load_file("adapter/vlm.safetensors")
    halved = {n: v.to(torch.bfloat16) if n.startswith("vision.cnn.") and v.is_floating_point() else v
              for n, v in tensors.items()}  # fmt: skip
    save_file(halved, "adapter/vlm.safetensors", metadata={"format": "pt"})
    write_manifest(Path("adapter"))
    model = ClinicalVLM.from_pretrained("adapter", base="base", device=torch.device("cpu"), dtype=torch.float32)
    cases = [(f"data/images/{image}" if image else None, vitals) for image, vitals in CASES]
    drafts = model.predict_many(cases, max_new_tokens=16)
    expected = {
        "cases": [{"image": image, "vitals": vitals, "text": draft.text, "probabilities": draft.probabilities}
                  for (image, vitals), draft in zip(CASES, drafts, strict=True)],
        "steps": [{name: row[name] for name in ("step", "loss_bce", "loss_ce")} for row in losses],
    }  # fmt: skip
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    Path("cnn.safetensors").unlink()  # it is in the adapter
    kept = {"config.yaml", "cases.sha256", "log.jsonl", "checkpoints"}
    for name in {path.name for path in Path("run").iterdir()} - kept:
        shutil.rmtree(f"run/{name}") if Path("run", name).is_dir() else Path("run", name).unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
