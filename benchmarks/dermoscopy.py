"""Marks to beat on dermatoscopic pictures, and what runs made of them on the same unseen lesions.

    python -m benchmarks.dermoscopy runs/ham10000-seed0 runs/ham10000-seed1 --json dermoscopy.json

The mark is a logistic regression on the features of the same encoder, frozen with its ImageNet weights, beside age, sex
and site. It learns on the same training cases, and five folds of their lesions choose its regularisation. The nearest
training case is found by the same features, or by those of the run's own encoder. A written diagnosis is read from the
text by the vocabulary of the config. Intervals resample lesions, and the runs if there are several; differences are
paired.
"""

import argparse
import json
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

from benchmarks.several_runs import interval, stacked
from vlm import ClinicalVLM
from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.ablation import minus
from vlm.evaluation.baselines import nearest_reports
from vlm.findings.labeller import Labeller
from vlm.model.encoders.build import build_encoder, image_pictures, image_spec
from vlm.statistics.intervals import Statistic, mean, ratio
from vlm.statistics.probability import auroc

DIAGNOSES = ["nevus", "melanoma", "benign_keratosis", "basal_cell_carcinoma", "actinic_keratosis", "vascular_lesion",
             "dermatofibroma"]  # fmt: skip
SIZES = ["small", "medium_sized", "large", "very_large"]
OUTLINES = ["regular_outline", "slightly_irregular_outline", "irregular_outline"]
TONES = ["same_tone", "somewhat_darker", "darker"]
WORDS = {"diagnosis": DIAGNOSES, "size": SIZES, "outline": OUTLINES, "tone": TONES}
MELANOMA = DIAGNOSES.index("melanoma")
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


class Marks:
    """What the marks say of the test cases, the same for every run of a config."""

    def __init__(self, config: Config) -> None:
        cohort = load_cohort(config.data)
        pictures = image_pictures(config.model.vision, config.data.image_size)[0]
        spec = CaseSpec.fit(cohort, image_spec(pictures, config.data.color == "rgb"), config.model.vitals.bins)
        self.labeller = Labeller.load(config.data.findings)
        self.train, self.test = (CaseDataset(cohort.split(name), spec, cohort.sections) for name in ("train", "test"))
        self.places = {case: place for place, case in enumerate(self.test.rows["id"])}
        seen = frozen_features(config, self.train), frozen_features(config, self.test)
        known = vitals_columns(self.train), vitals_columns(self.test)
        both = np.hstack([seen[0], known[0]]), np.hstack([seen[1], known[1]])
        malignant = np.array([labels[0] for labels in self.train.rows["labels"]])
        lesions = np.array(self.train.rows["patient"])
        diagnoses = words_of(self.train.reports, DIAGNOSES, self.labeller)
        inputs = {"vitals": known, "picture": seen, "picture and vitals": both}
        self.scores = {name: fit(values, malignant, lesions)[:, 1] for name, values in inputs.items()}
        self.said = {
            "constant": np.full(len(self.test), np.bincount(diagnoses[diagnoses >= 0]).argmax()),
            "regression": fit(both, diagnoses, lesions).argmax(axis=1),
            "nearest": diagnoses[(unit(seen[1]) @ unit(seen[0]).T).argmax(axis=1)],
        }

    def cases_of(self, run: Path) -> dict[str, np.ndarray]:
        """Read a run's drafts and head beside the marks, on the cases that it was tested on; a value for each case."""
        rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
        kept = [self.places[row["id"]] for row in rows]
        references, drafts = [row["reference"] for row in rows], [row["report"] for row in rows]
        own = nearest_reports(ClinicalVLM.from_pretrained(run / "adapter"), self.train, self.test, 64)
        found: dict[str, np.ndarray] = {
            "lesion": np.array([row["patient"] for row in rows]),
            "malignant": np.array([row["labels"]["malignant"] for row in rows], dtype=float),
            "score of the run": np.array([row["logits"]["malignant"] for row in rows]),
            **{f"score of {name}": scores[kept] for name, scores in self.scores.items()},
            "is": words_of(references, DIAGNOSES, self.labeller),
            "said by the run": words_of(drafts, DIAGNOSES, self.labeller),
            "said by its head": np.array([np.argmax([row["logits"][name] for name in DIAGNOSES]) for row in rows]),
            "said by nearest, own encoder": words_of([own[place] for place in kept], DIAGNOSES, self.labeller),
            **{f"said by {name}": said[kept] for name, said in self.said.items()},
        }
        for kind, names in WORDS.items():
            told, real = words_of(drafts, names, self.labeller), words_of(references, names, self.labeller)
            found[f"{kind} right"] = told == real
            found[f"{kind} usual"] = real == np.bincount(real[real >= 0]).argmax()
        return found


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)


def statistics_of(data: dict[str, np.ndarray]) -> dict[str, Statistic]:
    """Build the statistics of the stacked cases of all runs."""
    truth, real = data["malignant"], data["is"]
    areas = {name: auroc(truth, data[name]) for name in data if name.startswith("score of")}
    named = {name: macro_f1(data[name], real, len(DIAGNOSES)) for name in data if name.startswith("said by")}
    found = {f"AUROC of malignant, {name}": area for name, area in areas.items()}
    found["AUROC, run less picture and vitals"] = minus(areas["score of the run"], areas["score of picture and vitals"])
    found |= {f"macro F1, {name}": score for name, score in named.items()}
    for name in ("regression", "nearest", "nearest, own encoder"):
        found[f"macro F1, run less {name}"] = minus(named["said by the run"], named[f"said by {name}"])
    found |= {f"diagnosis right, {name}": mean((data[name] == real).astype(float)) for name in named}
    for name in ("said by the run", "said by its head"):
        said, has = data[name] == MELANOMA, real == MELANOMA
        hits = (said & has).astype(float)
        found |= {f"melanoma recall, {name}": ratio(hits, has.astype(float)),
                  f"melanoma precision, {name}": ratio(hits, said.astype(float))}  # fmt: skip
    found["melanoma prevalence"] = mean((real == MELANOMA).astype(float))
    for kind in WORDS:
        found |= {f"{kind} word right": mean(data[f"{kind} right"].astype(float)),
                  f"{kind} word right, constant": mean(data[f"{kind} usual"].astype(float))}  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs of configs/ham10000.yaml, each with a seed")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    config, _ = parse_config(["--config", str(options.runs[0] / "config.yaml")])
    marks = Marks(config)
    runs = {run.name: marks.cases_of(run) for run in options.runs}
    first = next(iter(runs.values()))
    result: dict[str, Any] = {"runs": list(runs), "cases": len(first["is"]), "lesions": len(set(first["lesion"])),
                              "malignant": int(first["malignant"].sum())}  # fmt: skip
    each = [statistics_of(data) for data in runs.values()]
    for name, statistic in statistics_of(stacked(runs)).items():
        alone = [float(one[name](np.ones((1, len(first["is"]))))[0]) for one in each]
        result[name] = {**interval(statistic, first["lesion"], len(runs))._asdict(), "runs": alone}
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
