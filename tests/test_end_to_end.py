"""The real thing, small: SmolLM2 in 4 bits and an ImageNet CNN on a few phantom cases, launched as users launch it.

The base weights come from the package index once and stay in the user's cache.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm.data.ingest.phantom import draw_cases
from vlm.data.ingest.phantom_words import TABLE
from vlm.data.splits import assign_splits

PROJECT = Path(__file__).resolve().parent.parent
SMALL = {
    "data.phantom.cases": 60,
    "train.max_steps": 8,
    "train.precision": "fp32",  # as drafts are made: a model trained in bf16 may write another word when it is loaded
    "loss.head_only_steps": 2,
    "train.learning_rate": 1e-3,
    "train.lora_learning_rate": 1e-3,
    "train.warmup_steps": 1,
    "train.batch_size": 4,
    "train.micro_batch_size": 4,
    "train.eval_steps": 4,
    "train.log_steps": 1,
    "evaluation.batch_size": 8,
    "evaluation.max_new_tokens": 12,
    "evaluation.ablation": "false",
    "evaluation.bootstrap_draws": 20,
}


def launch(folder: Path, *options: str) -> subprocess.CompletedProcess:
    small = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    folders = ["--run.folder", str(folder / "runs"), "--data.root", str(folder / "phantom")]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command = [*accelerate, "train_lora.py", "--config", "configs/demo.yaml", *folders, *small, *options]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=580)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the real base models."""
    folder = tmp_path_factory.mktemp("real")
    result = launch(folder)
    assert result.returncode == 0, result.stderr[-3000:]
    said = result.stderr
    assert "parameters: trained" in said and "dequantize 4-bit: True (" in said and "unseen cases of" in said
    assert "threads: 1 (" not in said or "1 cores" in said, "accelerate's OMP_NUM_THREADS=1 idled the other cores"
    return folder / "runs" / "demo"


def test_the_real_base_learns_from_the_first_steps(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    evaluations = [row["eval_loss_ce"] for row in rows if "eval_loss_ce" in row]
    metrics = json.loads((run / "metrics.json").read_text())
    assert evaluations[-1] < evaluations[0]
    assert metrics["text_loss"]["value"] < metrics["text_loss_untrained"]["value"] < 7  # a random LLM: ln 49152 = 10.8


def test_the_adapter_is_small_and_safe(run: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in (run / "adapter").iterdir()}
    assert sum(sizes.values()) < 40e6 and all(name.endswith((".safetensors", ".json", ".md")) for name in sizes)


RELOAD = """
import sys, json, numpy as np, torch
torch.set_num_threads(2)
from vlm import ClinicalVLM
from vlm.data.collate import Collator
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.phantom import load_phantom
from vlm.config import DataConfig, PhantomConfig
adapter, root, out = sys.argv[1:]
model = ClinicalVLM.from_pretrained(adapter)
cohort = load_phantom(DataConfig(root=root, phantom=PhantomConfig(cases=60)))
dataset = CaseDataset(cohort.dataset, model.spec, cohort.sections)
batch = Collator(model.prompt)([dataset[i] for i in range(4)])
with torch.no_grad():
    output = model(**batch)
    encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
    embeddings = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)
    hidden = model.trunk(embeddings, batch["attention_mask"])
texts, _ = model.generate(Collator(model.prompt, generation=True)([dataset[i] for i in range(4)]), 12)
np.savez(out, logits=output.logits, losses=output.case_losses, hidden=hidden)
print(json.dumps(texts))
"""


def test_two_fresh_processes_give_identical_logits_and_text(run: Path, tmp_path: Path) -> None:
    results = []
    for number in range(2):
        out = tmp_path / f"{number}.npz"
        command = [sys.executable, "-c", RELOAD, str(run / "adapter"), str(run.parent.parent / "phantom"), str(out)]
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        results.append((np.load(out), json.loads(result.stdout.splitlines()[-1])))
    (a, texts), (b, again) = results
    assert texts == again and all(np.array_equal(a[name], b[name]) for name in a.files)


def test_the_reloaded_adapter_writes_what_the_training_process_wrote(run: Path) -> None:
    """predictions.jsonl was written by the training process; a fresh one must agree with it."""
    from vlm import ClinicalVLM

    model = ClinicalVLM.from_pretrained(run / "adapter")
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    table = pd.read_csv(run.parent.parent / "phantom" / "cases.csv", dtype=str, keep_default_na=False).set_index("case")
    cases = []
    for row in predictions:
        case = table.loc[row["id"]]
        image = run.parent.parent / "phantom" / "images" / case["image"] if case["image"] else None
        cases.append((image, {"glucose": case["glucose"], "bp": case["blood_pressure"], "age": case["age"]}))
    for row, report in zip(predictions, model.predict_many(cases, batch_size=8, max_new_tokens=12), strict=True):
        assert report.text == row["report"]
        assert report.probabilities == pytest.approx(row["probabilities"], abs=1e-5)


def test_resume_goes_on_from_the_newest_checkpoint(run: Path) -> None:
    result = launch(run.parent.parent, "--resume", "--train.max_steps", "9")
    assert result.returncode == 0, result.stderr[-3000:]
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 10))


def test_a_mistake_is_one_line_also_under_accelerate(tmp_path: Path) -> None:
    result = launch(tmp_path, "--train.max_stepz", "5")
    assert result.returncode != 0 and "Traceback" not in result.stderr
    assert "error: unknown option --train.max_stepz; did you mean --train.max_steps?" in result.stderr


def test_the_demo_drafts_an_unseen_case_with_its_own_values() -> None:
    """The case named in the Makefile is in the demo's test split, and its vitals are those of its row."""
    from vlm.config.parsing import parse_config
    from vlm.data.vitals.schema import VitalsSchema
    from vlm.inference.command import read_vitals

    makefile = (PROJECT / "Makefile").read_text()
    name = re.search(r"^CASE := (.*)$", makefile, re.M)[1]
    vitals = read_vitals(re.search(r"^VITALS := (.*)$", makefile, re.M)[1])
    config, _ = parse_config(["--config", str(PROJECT / "configs" / "demo.yaml")])
    case = draw_cases(config.data.phantom).set_index("case").loc[name]
    assert assign_splits([name], config.data.split) == ["test"] and case["image"]
    schema = VitalsSchema(tuple(TABLE.vitals))
    given, _ = schema.parse(vitals)
    own, _ = schema.parse({"glucose": case["glucose"], "bp": case["blood_pressure"], "age": case["age"]})
    np.testing.assert_array_equal(given, own)
