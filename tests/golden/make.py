"""Make a golden adapter and run, once a release, with that release's code: `python tests/golden/make.py VERSION`.

It trains a model of a few kilobytes on a table of sixteen cases, so that later versions are held against what this
one wrote: VERSION/adapter must load and draft VERSION/expected.json, VERSION/run must go on from its checkpoint with
the same losses. All versions share `base` and `data`. The top folder and `sparse` are of 0.1: `sparse` was written
without the options at their default.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import timm
import torch
from safetensors.torch import load_file, save_file

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

OTHERWISE = "No opacity in either lung."
CASES = [("0.png", {"glucose": 8.7, "bp": "145/90"}), ("5.png", {"glucose": 5.1, "sex": "F"}), (None, {"bp": "120/80"})]
STEPS, ON = 90, 110
MADE_AGAIN = {".lock", "figures", "metrics.json", "predictions.jsonl", "report.html"}
"""Files of a run that the end of training writes."""


def write_cnn(file: Path) -> None:
    """The CNN's weights in steps of 1/32, so that the adapter can hold them in bf16 and they compress well."""
    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet", num_classes=0, global_pool="").state_dict()
    save_file({name: _rounded(value).contiguous() for name, value in state.items()}, file)


def _rounded(value: torch.Tensor) -> torch.Tensor:
    return (value * 32).round() / 32 if value.is_floating_point() else value


def job(version: str) -> Config:
    """Return the job, with paths relative to the golden folder."""
    vitals: list[VitalConfig | str] = [
        VitalConfig("glucose", "mmol/L", plausible=[1, 50], reference=[3.9, 7.8]),
        VitalConfig("systolic", "mmHg", plausible=[40, 300], reference=[90, 139]),
        VitalConfig("diastolic", "mmHg", plausible=[20, 200], reference=[60, 89]),
        VitalConfig("sex", categories=["F", "M"]),
    ]
    table = TableConfig(images="images", id="case", patient="patient", split="split", labels=["opacity"],
                        vitals=vitals, report=[SectionConfig("findings", ["image"], OTHERWISE)])  # fmt: skip
    return Config(
        run=RunConfig(name="run", folder=version),
        data=DataConfig(source="table", root="data", image_size=32, table=table),
        model=ModelConfig(
            llm=LLMConfig(base="base", quantization="none", lora_rank=1, lora_targets=["q_proj", "v_proj"]),
            vision=VisionConfig("test_efficientnet", weights="cnn.safetensors", train=False, grid=1, summary_grid=1),
            vitals=VitalsConfig(tokens=1, bins=2),
            fusion=FusionConfig(size=4),
        ),
        train=TrainConfig(max_steps=STEPS, batch_size=4, micro_batch_size=4, learning_rate=1e-2, warmup_steps=1,
                          lora_learning_rate=1e-2, log_steps=10, eval_steps=90, keep_checkpoints=1, threads=1,
                          schedule="constant_with_warmup", precision="fp32"),
        evaluation=EvaluationConfig(batch_size=8, max_new_tokens=2, bootstrap_draws=5, ablation=False),
    )  # fmt: skip


def main(version: str) -> None:
    """Train, halve the adapter's CNN, write down what is drafted and what the next steps lose."""
    os.chdir(Path(__file__).parent)
    folder = Path(version)
    shutil.rmtree(folder, ignore_errors=True)
    run, adapter = folder / "run", folder / "adapter"
    write_cnn(Path("cnn.safetensors"))
    train(job(version))
    shutil.move(run / "adapter", adapter)
    shutil.copytree(run, folder / "kept")
    train(replace(job(version), train=replace(job(version).train, max_steps=ON)), resume=True)
    losses = [row for row in read_log(run / "log.jsonl") if row["step"] > STEPS and "loss_ce" in row]
    shutil.rmtree(run)
    shutil.move(folder / "kept", run)
    tensors = load_file(adapter / "vlm.safetensors")
    halved = {n: v.to(torch.bfloat16) if n.startswith("vision.cnn.") and v.is_floating_point() else v
              for n, v in tensors.items()}  # fmt: skip
    save_file(halved, adapter / "vlm.safetensors", metadata={"format": "pt"})
    write_manifest(adapter)
    model = ClinicalVLM.from_pretrained(adapter, base="base", device=torch.device("cpu"), dtype=torch.float32)
    cases = [(f"data/images/{image}" if image else None, vitals) for image, vitals in CASES]
    drafts = model.predict_many(cases, max_new_tokens=16)
    expected = {
        "cases": [{"image": image, "vitals": vitals, "text": draft.text, "probabilities": draft.probabilities}
                  for (image, vitals), draft in zip(CASES, drafts, strict=True)],
        "steps": [{name: row[name] for name in ("step", "loss_bce", "loss_ce")} for row in losses],
    }  # fmt: skip
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    Path("cnn.safetensors").unlink()  # it is in the adapter
    for path in run.iterdir():
        if path.name in MADE_AGAIN:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
