"""Heart rates that drafts state, and AUROC of the head, on ECGs with reports, beside a regression on age and sex.

    python -m benchmarks.signals --root data/ecg --json signals.json

Each seed draws another split by patient and other first weights. The rate of a draft is compared with the column
`heart_rate_measured`, which the model never reads. The regression reads age and sex alone, and learns on the same
training cases. Intervals resample patients. With `--head` the language model does not run: the head alone learns, and
the rate is the one whose digits the prompt would show.
"""

import argparse
import csv
import itertools
import json
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer

from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.ingest.sources import load_cohort
from vlm.data.storage import matrix
from vlm.evaluation.ablation import minus
from vlm.evaluation.scoring import score_cases
from vlm.inference.features import keep_features
from vlm.statistics.intervals import mean, patient_bootstrap
from vlm.statistics.probability import auroc
from vlm.training.run import build_loop, build_model, case_dataset, train
from vlm.training.run_folder import RunFolder

NEAR = 5.0
"""A stated rate is right within so many beats a minute."""
DRAWS = 2000


def measured_rates(root: str) -> dict[str, float]:
    """Read the measured rate of each record, which the config does not name."""
    with (Path(root) / "cases.csv").open(newline="") as table:
        return {row["record"]: float(row["heart_rate_measured"]) for row in csv.DictReader(table)}


def stated_rate(draft: str) -> float:
    """Read the rate that a draft states; NaN without one."""
    found = re.search(r"[Hh]eart rate (\d+) a minute", draft)
    return float(found[1]) if found else float("nan")


def regression(config: Config, label: str) -> dict[str, float]:
    """Fit a logistic regression on age (a spline) and sex to the training cases; returns each test case's logit."""
    cohort = load_cohort(config.data)
    known, place = {}, cohort.labels.index(label)
    for name in ("train", "test"):
        rows = cohort.split(name)
        known[name] = matrix(rows, "vitals", len(cohort.schema)), matrix(rows, "labels", len(cohort.labels))[:, place]
    fitted = make_pipeline(SimpleImputer(strategy="median"), SplineTransformer(4), LogisticRegression(max_iter=2000))
    fitted.fit(*known["train"])
    return dict(zip(cohort.split("test")["id"], fitted.decision_function(known["test"][0]).tolist(), strict=True))


def measure(config: Config, root: str, label: str) -> list[dict[str, Any]]:
    """Train once; returns a row for each unseen case: rate, label, logits of head and regression."""
    rates, folder = measured_rates(root), train(config)
    baseline = regression(config, label)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    return [
        {
            "patient": row["patient"],
            "error": stated_rate(row["report"]) - rates[row["id"]],
            "target": row["labels"][label],
            "head": row["logits"][label],
            "baseline": baseline[row["id"]],
        }
        for row in rows
    ]


def measure_head(config: Config, root: str, label: str) -> list[dict[str, Any]]:
    """Train the head alone; returns the rows of `measure`, with the rate that the encoder shows for that of a draft."""
    config = replace(config, loss=replace(config.loss, alpha=1.0))
    cohort, rates, folder = load_cohort(config.data), measured_rates(root), RunFolder(config)
    model = build_model(config, cohort, torch.device("cpu"), torch.float32)
    folder.path.mkdir(parents=True)
    loop = build_loop(config, model, cohort, folder)
    keep_features(model, config, [loop.training, loop.validation])
    loop.run(None)
    test, place = case_dataset(config, model.spec, cohort, "test"), model.spec.labels.index(label)
    scores = score_cases(model, test, 64, "test", text=False)
    assert model.signal is not None and model.signal.cycles is not None
    with torch.no_grad():
        shown = model.signal.cycles.find(torch.stack([test[index]["signal"] for index in range(len(test))])).rate
    baseline = regression(config, label)
    return [
        {
            "patient": row["patient"],
            "error": round(rate) - rates[row["id"]],
            "target": target,
            "head": logit,
            "baseline": baseline[row["id"]],
        }
        for row, rate, target, logit in zip(
            test.rows, shown.tolist(), scores.targets[:, place], scores.logits[:, place], strict=True
        )
    ]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the share of right rates, both AUROCs and their difference, with intervals over patients."""
    patients = [row["patient"] for row in rows]
    targets, head, baseline = (np.array([row[name] for row in rows], float) for name in ("target", "head", "baseline"))
    errors = np.abs(np.array([row["error"] for row in rows], float))
    areas = auroc(targets, head), auroc(targets, baseline)
    statistics = {"rate_right": mean(np.where(np.isnan(errors), 0.0, errors <= NEAR)), "auroc": areas[0],
                  "auroc_age_sex": areas[1], "difference": minus(*areas)}  # fmt: skip
    found = {name: patient_bootstrap(one, patients, DRAWS, classes=targets) for name, one in statistics.items()}
    return {"cases": len(rows), **{name: [one.value, one.low, one.high] for name, one in found.items()}}


def pooled(runs: list[list[dict[str, Any]]]) -> list[float | None]:
    """Average the difference of the AUROCs over the seeds; a patient is drawn in all test splits that have it."""
    rows, ends = [row for run in runs for row in run], np.cumsum([0, *map(len, runs)])
    targets, *scores = (np.array([row[name] for row in rows], float) for name in ("target", "head", "baseline"))
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    differences = [minus(*(auroc(targets[part], values[part]) for values in scores)) for part in parts]

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.mean([one(weights[:, part]) for one, part in zip(differences, parts, strict=True)], axis=0)

    found = patient_bootstrap(statistic, [row["patient"] for row in rows], DRAWS, classes=targets)
    return [found.value, found.low, found.high]


def swapped(metrics: Path) -> dict[str, Any]:
    """Read the changes with another patient's signal; none of a head alone."""
    if not metrics.is_file():
        return {}
    arm = json.loads(metrics.read_text())["ablation"].get("signal_swapped", {})
    names = ("text_loss_change", "auroc_change", "drafts_changed")
    return {f"swapped_{name}": [arm[name][end] for end in ("value", "low", "high")] for name in names if name in arm}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the table and the signals")
    parser.add_argument("--label", default="NORM")
    parser.add_argument("--head", action="store_true", help="train the head alone, without the language model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments, overrides = parser.parse_known_args(argv)
    flat: dict[str, Any] = {}
    runs: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as work:
        for seed in arguments.seeds:
            start = time.monotonic()
            own = ["--data.root", arguments.root, "--run.folder", work, "--run.name", f"seed-{seed}"]
            own += ["--train.seed", str(seed), "--data.split.seed", str(seed)]
            config = parse_config(["--config", "configs/ecg.yaml", *own, *overrides])[0]
            rows = (measure_head if arguments.head else measure)(config, arguments.root, arguments.label)
            runs.append(rows)
            found = {**summary(rows), **swapped(Path(work) / f"seed-{seed}" / "metrics.json")}
            found["seconds"] = round(time.monotonic() - start)
            print(seed, json.dumps(found), flush=True)
            flat |= {f"signals.seed{seed}.{name}": value for name, value in found.items()}
    flat["signals.difference"] = pooled(runs)
    print("difference over the seeds", flat["signals.difference"])
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
