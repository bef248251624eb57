"""Losses of the head for rare labels, each on the kept encoder of runs of configs/ham10000.yaml.

    python -m benchmarks.head_losses runs/ham10000-seed0 runs/ham10000-seed1

The joint layer and the head start anew on the encoder's features and the vitals of the training cases, and learn by
each loss for the same steps. Validation chooses the step and the temperature. All unseen lesions are tested;
differences from the plain loss are paired, with 95 % intervals over draws of lesions and of runs.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional as F

from benchmarks.dermoscopy import DIAGNOSES, MELANOMA, macro_f1
from benchmarks.several_runs import interval, stacked
from benchmarks.text_options import Job
from benchmarks.text_ways import Way
from vlm.config.parsing import parse_config
from vlm.data.collate import Collator
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.ablation import macro_auroc, minus
from vlm.inference.features import keep_features
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.fusion import JointVector
from vlm.statistics.intervals import Statistic, mean, ratio
from vlm.statistics.probability import auroc
from vlm.training.run import case_dataset

STEPS, EVERY, RATE = 400, 20, 1e-3
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""f (N × F), x (N × X) and the targets (N × K)."""


def focal(logits: torch.Tensor, targets: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """Compute the focal loss (Lin et al., 2017)."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return ((1 - (-losses).exp()) ** gamma * losses).mean()


def asymmetric(logits: torch.Tensor, targets: torch.Tensor, gamma: float = 4.0, margin: float = 0.05) -> torch.Tensor:
    """Compute the asymmetric loss (Ridnik et al., 2021): easy negatives count little, those under a margin nothing."""
    p = logits.sigmoid()
    shifted = (p - margin).clamp(min=0)
    present = targets * F.logsigmoid(logits)
    absent = (1 - targets) * shifted**gamma * (1 - shifted).clamp(min=1e-6).log()
    return -(present + absent).mean()


def losses_for(targets: torch.Tensor) -> dict[str, Loss]:
    """List the losses; `targets` are those of training, N × K."""
    odds = (1 - targets.mean(dim=0)) / targets.mean(dim=0)  # K
    plain = F.binary_cross_entropy_with_logits
    return {
        "BCE": plain,
        "positives weigh their odds": lambda k, y: plain(k, y, pos_weight=odds),
        "positives weigh their root": lambda k, y: plain(k, y, pos_weight=odds.sqrt()),
        "focal": focal,
        "asymmetric": asymmetric,
    }


@torch.no_grad()
def inputs_of(model: ClinicalVLM, dataset: CaseDataset) -> Inputs:
    """Compute f and x of a split's cases."""
    rows = []
    for batch in torch.utils.data.DataLoader(dataset, 256, collate_fn=Collator(model.prompt)):
        f = model.vision(batch["pixel_values"], batch["has_image"]).f
        rows.append((f, model.vitals(batch["vitals"])[1], batch["targets"]))
    f, x, targets = map(torch.cat, zip(*rows, strict=True))
    return f, x, targets


def fit(model: ClinicalVLM, loss: Loss, train: Inputs, validation: Inputs, seed: int) -> nn.Module:
    """Train a joint layer and head; the step with the best mean AUROC on validation is kept."""
    torch.manual_seed(seed)
    f, x, targets = train
    head = JointVector(model.model_config.fusion, f.shape[1], x.shape[1], targets.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.01)
    best, kept = -1.0, head.state_dict()
    for step in range(1, STEPS + 1):
        rows = torch.randint(0, len(f), (512,))
        loss(head(f[rows], x[rows])[1], targets[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            logits = head(*validation[:2])[1].detach().numpy()
            area = float(macro_auroc(logits, validation[2].numpy())(np.ones((1, len(logits))))[0])
            if area > best:
                best, kept = area, {name: value.clone() for name, value in head.state_dict().items()}
    head.load_state_dict(kept)
    return head.eval()


def tempered(validation: np.ndarray, targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Divide logits by the temperature that fits validation best."""

    def nll(log_temperature: float) -> float:
        scaled = validation / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    return logits / np.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded").x)


def tested(run: Path) -> dict[str, dict[str, list[float]]]:
    """Train a head by each loss on one run, and test it; loss → measure → a value for each case."""
    job = Job(run, Way(), cases=0)
    config, _ = parse_config(["--config", str(run / "config.yaml")])
    validation = case_dataset(job.config, job.model.spec, load_cohort(config.data), "validation")
    keep_features(job.model, job.config, [validation], 64)
    parts = [inputs_of(job.model.eval(), data) for data in (replace(job.train, dropout=None), validation, job.test)]
    train, checked, test = parts
    labels = list(job.model.spec.labels)
    places, malignant = [labels.index(name) for name in DIAGNOSES], labels.index("malignant")
    results: dict[str, dict[str, list[float]]] = {}
    for name, loss in losses_for(train[2]).items():
        head = fit(job.model, loss, train, checked, config.train.seed)
        with torch.no_grad():
            of_validation, logits = (head(*part[:2])[1].numpy() for part in (checked, test))
        logits = tempered(of_validation, checked[2].numpy(), logits)
        targets = test[2].numpy()
        bce = np.logaddexp(0, logits) - targets * logits
        results[name] = {
            "lesion": list(job.test.rows["patient"]),
            "bce": bce.mean(axis=1).tolist(),
            "malignant": logits[:, malignant].tolist(),
            "truth": targets[:, malignant].tolist(),
            "said": logits[:, places].argmax(axis=1).tolist(),
            "is": targets[:, places].argmax(axis=1).tolist(),
        }
    return results


STATISTICS: dict[str, Callable[[dict[str, np.ndarray]], Statistic]] = {
    "AUROC of malignant": lambda data: auroc(data["truth"], data["malignant"]),
    "BCE": lambda data: mean(data["bce"]),
    "diagnosis, macro F1": lambda data: macro_f1(data["said"], data["is"], len(DIAGNOSES)),
    "melanoma named": lambda data: ratio(
        ((data["said"] == MELANOMA) & (data["is"] == MELANOMA)).astype(float), (data["is"] == MELANOMA).astype(float)
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs of configs/ham10000.yaml")
    by_run = {run.name: tested(run) for run in parser.parse_args().runs}
    names = list(next(iter(by_run.values())))
    print("| loss | " + " | ".join(STATISTICS) + " |\n" + "| --- " * (len(STATISTICS) + 1) + "|")
    base = {run: results["BCE"] for run, results in by_run.items()}
    for name in names:
        runs = {run: results[name] for run, results in by_run.items()}
        cells = []
        for statistic in STATISTICS.values():
            of = statistic(stacked(runs))
            paired = of if name == "BCE" else minus(of, statistic(stacked(base)))
            value, low, high = interval(paired, next(iter(runs.values()))["lesion"], len(runs))
            cells.append(f"{value:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
