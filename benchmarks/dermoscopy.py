"""Marks to beat on dermatoscopic pictures, and what a run made of them on the same unseen lesions.

    python -m benchmarks.dermoscopy runs/ham10000 --json dermoscopy.json

The mark is a logistic regression on the features of the same encoder, frozen with its ImageNet weights, beside age, sex
and site. It learns on the same training cases, and five folds of their lesions choose its regularisation. A run's
written diagnosis is read from its drafts by the vocabulary of the config. Intervals resample lesions; differences are
paired.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader
from tqdm import tqdm

from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.case import CaseSpec
from vlm.data.cohort import Cohort
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.ablation import minus
from vlm.evaluation.intervals import Statistic, mean, patient_bootstrap
from vlm.evaluation.probability import auroc
from vlm.findings.labeller import Labeller
from vlm.model.encoders.build import build_encoder, image_pictures, image_spec

DIAGNOSES = ["nevus", "melanoma", "benign_keratosis", "basal_cell_carcinoma", "actinic_keratosis", "vascular_lesion",
             "dermatofibroma"]  # fmt: skip
SIZES = ["small", "medium_sized", "large", "very_large"]
OUTLINES = ["regular_outline", "slightly_irregular_outline", "irregular_outline"]
TONES = ["same_tone", "somewhat_darker", "darker"]
WORDS = {"diagnosis": DIAGNOSES, "size": SIZES, "outline": OUTLINES, "tone": TONES}
DRAWS = 2000
STRENGTHS = (3e-5, 3e-4, 3e-3, 3e-2, 0.3)
"""C of the regression, the inverse of its regularisation."""


@torch.no_grad()
def frozen_features(config: Config, dataset: CaseDataset) -> np.ndarray:
    """Compute the encoder's mean features with its own weights, N × C."""
    network, encoder, _ = build_encoder(config.model.vision, dataset.spec.image.size)
    loader = DataLoader(
        dataset, batch_size=64, collate_fn=lambda batch: [example["pixel_values"][0] for example in batch]
    )
    rows = [encoder.grid(network.eval(), torch.stack(images)).mean(dim=(2, 3)) for images in tqdm(loader)]
    return torch.cat(rows).numpy()


def vitals_columns(dataset: CaseDataset) -> np.ndarray:
    """One-hot encode the categories and mean-impute the numbers, with whether they are missing."""
    columns = []
    for place, vital in enumerate(dataset.spec.schema.vitals):
        values = np.array([row[place] for row in dataset.rows["vitals"]], dtype=np.float64)
        if vital.categories:
            columns += [values == number for number in range(len(vital.categories))]
        else:
            columns += [np.where(np.isnan(values), 50.0, values), np.isnan(values)]
    return np.column_stack(columns).astype(np.float64)


def fit(inputs: tuple[np.ndarray, np.ndarray], labels: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """Fit on the training cases, with the lesion of each, and return the test cases' class probabilities."""
    folds = list(GroupKFold(5).split(inputs[0], groups=lesions))
    model = make_pipeline(
        StandardScaler(), LogisticRegressionCV(Cs=STRENGTHS, cv=folds, scoring="neg_log_loss", max_iter=3000)
    )
    return model.fit(inputs[0], labels).predict_proba(inputs[1])


def macro_f1(said: np.ndarray, truth: np.ndarray, classes: int) -> Statistic:
    """Build the statistic of the mean F1 over classes; `said` and `truth` are N numbers, -1 for none."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        scores = []
        for k in range(classes):
            right = weights @ ((said == k) & (truth == k)).astype(float)
            both = weights @ ((said == k).astype(float) + (truth == k))
            scores.append(2 * right / np.maximum(both, 1e-9))
        return np.mean(scores, axis=0)

    return statistic


def words_of(texts: list[str], names: list[str], labeller: Labeller) -> np.ndarray:
    """Read which one of some words each text states; -1 for none or several."""
    found = [labeller.label(text) for text in texts]
    stated = [[k for k, name in enumerate(names) if name in row and row[name].status == "present"] for row in found]
    return np.array([ks[0] if len(ks) == 1 else -1 for ks in stated])


def measure(run: Path, config: Config, cohort: Cohort) -> dict[str, Any]:
    """Measure a run's drafts and head beside the marks, on the cases that it was tested on."""
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    labeller, lesions = Labeller.load(config.data.findings), [row["patient"] for row in rows]
    pictures = image_pictures(config.model.vision, config.data.image_size)[0]
    spec = CaseSpec.fit(cohort, image_spec(pictures, config.data.color == "rgb"), config.model.vitals.bins)
    train, test = (CaseDataset(cohort.split(name), spec, cohort.sections) for name in ("train", "test"))
    places = {case: place for place, case in enumerate(test.rows["id"])}
    kept = [places[row["id"]] for row in rows]
    seen = frozen_features(config, train), frozen_features(config, test)[kept]
    known = vitals_columns(train), vitals_columns(test)[kept]
    both = np.hstack([seen[0], known[0]]), np.hstack([seen[1], known[1]])
    malignant = np.array([labels[0] for labels in train.rows["labels"]])
    truth = np.array([row["labels"]["malignant"] for row in rows], dtype=float)
    references, drafts = [row["reference"] for row in rows], [row["report"] for row in rows]

    def show(statistic: Statistic) -> dict[str, Any]:
        return patient_bootstrap(statistic, lesions, DRAWS)._asdict()

    groups = np.array(train.rows["patient"])
    marks = {"vitals": known, "picture": seen, "picture and vitals": both}
    heads = {"run": np.array([row["logits"]["malignant"] for row in rows])}
    heads |= {name: fit(inputs, malignant, groups)[:, 1] for name, inputs in marks.items()}
    areas = {name: auroc(truth, scores) for name, scores in heads.items()}
    result: dict[str, Any] = {"cases": len(rows), "lesions": len(set(lesions)), "malignant": int(truth.sum())}
    result["auroc malignant"] = {name: show(area) for name, area in areas.items()}
    result["auroc, run less picture and vitals"] = show(minus(areas["run"], areas["picture and vitals"]))

    trained = words_of(train.reports, DIAGNOSES, labeller)
    given = words_of(references, DIAGNOSES, labeller)
    written: dict[str, np.ndarray] = {
        "run": words_of(drafts, DIAGNOSES, labeller),
        "constant": np.zeros(len(rows), int),
    }
    written["head"] = np.array([np.argmax([row["logits"][name] for name in DIAGNOSES]) for row in rows])
    written["picture and vitals"] = fit(both, trained, groups).argmax(axis=1)
    for name in written:
        result[f"diagnosis, {name}"] = {
            "macro f1": show(macro_f1(written[name], given, len(DIAGNOSES))),
            "right": show(mean((written[name] == given).astype(float))),
        }
    result["macro f1, run less picture and vitals"] = show(
        minus(macro_f1(written["run"], given, 7), macro_f1(written["picture and vitals"], given, 7))
    )
    said, has = written["run"] == 1, given == 1
    result["melanoma"] = {"cases": int(has.sum()), "written": int(said.sum()), "right": int((said & has).sum()),
                          "prevalence": float(has.mean())}  # fmt: skip
    share: Callable[[np.ndarray], Statistic] = lambda right: mean(right.astype(float))  # noqa: E731
    for kind, names in WORDS.items():
        told, real = words_of(drafts, names, labeller), words_of(references, names, labeller)
        usual = np.bincount(real[real >= 0]).argmax()
        result[f"{kind} word right"] = {"run": show(share(told == real)), "constant": show(share(real == usual))}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run of configs/ham10000.yaml")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    config, _ = parse_config(["--config", str(options.run / "config.yaml")])
    result = measure(options.run, config, load_cohort(config.data))
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
