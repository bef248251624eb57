"""Baselines to beat: a constant report, the nearest training case, and logistic regressions."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vlm.data.case import Example
from vlm.data.dataset import CaseDataset
from vlm.data.study import PRIOR, StudySpec, role_of
from vlm.findings.labeller import Labeller, chest
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.progress import progress

BLOCK = 512
"""Test cases compared at a time: all with all would take N × M numbers."""


def constant_report(reports: Sequence[str], labeller: Labeller | None = None) -> str:
    """Pick the strongest constant: the training report whose findings have the highest F1 against all the others.

    If no report asserts a finding, pick the most frequent report.
    """
    written = [report for report in reports if report]
    counts = Counter(written)
    candidates = [report for report, _ in counts.most_common()]
    if not candidates:
        return ""
    labeller = labeller or chest()
    often = np.array([counts[report] for report in candidates])  # D
    found = [labeller.label(report) for report in candidates]
    asserts, leaves_open = (
        np.array([[name in row and row[name].status == status for name in labeller.names] for row in found])
        for status in ("present", "uncertain")
    )  # D × F each
    present, uncertain = often @ asserts, often @ leaves_open  # F, over all N reports
    right = asserts @ present  # D
    errors = asserts @ (often.sum() - present - uncertain) + ~asserts @ present  # D, hallucinated and missed
    f1 = 2 * right / np.maximum(2 * right + errors, 1)
    return candidates[int(f1.argmax())]  # ties: the most frequent report


@torch.no_grad()
def image_features(model: ClinicalVLM, dataset: CaseDataset, batch_size: int, workers: int = 0) -> np.ndarray:
    """Compute the L2-normalized pooled encoder features of each case, N × C; zeros for a case without an image.

    Features that the dataset holds already are not computed again.
    """
    model.eval()
    rows = []
    loader = torch.utils.data.DataLoader(dataset, batch_size, num_workers=workers, collate_fn=_first_images)
    for images, has in progress(loader, "features for retrieval"):
        if images.ndim == 3:  # B × (g·g + s·s) × C, whose last s·s are pooled from the whole image
            pooled = images[:, model.model_config.vision.grid**2 :].mean(dim=1)
        else:
            with model.autocast():
                pooled = model.vision.grid(images.to(model.device)).float().mean(dim=(2, 3))  # B × C × h × w → B × C
        rows.append(pooled.cpu().numpy() * has.numpy())
    features = np.concatenate(rows)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)


def _first_images(batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack the first image of each case (B × 3 × S × S), or its features, and whether it has one (B × 1)."""
    return torch.stack([e["pixel_values"][0] for e in batch]), torch.tensor([[e["has_image"]] for e in batch])


def nearest_reports(
    model: ClinicalVLM, train: CaseDataset, test: CaseDataset, batch_size: int, workers: int = 0
) -> list[str]:
    """Retrieve the report of the training case whose first image has the highest cosine similarity of CNN features.

    `workers` processes read the images.
    """
    known, asked = (image_features(model, data, batch_size, workers) for data in (train, test))
    candidates = np.flatnonzero([any(sections) for sections in train.rows["sections"]])
    if not len(candidates):
        candidates = np.arange(len(known))
    blocks = (asked[start : start + BLOCK] @ known[candidates].T for start in range(0, len(asked), BLOCK))  # n × M
    nearest = candidates[np.concatenate([block.argmax(axis=1) for block in blocks])]  # N
    return [train.report(int(index)) for index in nearest]


def classifier_scores(train: CaseDataset, test: CaseDataset, kind: str, seed: int = 0) -> np.ndarray:
    """Predict probabilities (N × K) by logistic regression on vitals alone, or on which of them are missing.

    `kind` is `vitals` (values, mean-imputed) or `missingness` (indicators of missing values and of an image).
    NaN for a label with one class only in training.
    """
    x, y = _inputs(train, kind), np.array(train.rows["labels"], dtype=np.float64)
    asked = _inputs(test, kind)
    if kind == "vitals":
        means = np.nan_to_num(np.nanmean(np.where(np.isnan(x).all(0), 0.0, x), axis=0))
        x, asked = np.where(np.isnan(x), means, x), np.where(np.isnan(asked), means, asked)
    y = y.reshape(len(x), -1)
    result = np.full((len(asked), y.shape[1]), np.nan)
    for k in range(y.shape[1]):
        known = ~np.isnan(y[:, k])
        if len(np.unique(y[known, k])) == 2 and x.shape[1]:
            model = make_pipeline(StandardScaler(), LogisticRegression(random_state=seed, max_iter=2000))
            result[:, k] = model.fit(x[known], y[known, k]).predict_proba(asked)[:, 1]
    return result


def _inputs(dataset: CaseDataset, kind: str) -> np.ndarray:
    rows = dataset.rows
    vitals = np.array(rows["vitals"], dtype=np.float64).reshape(len(rows), -1)
    if kind == "vitals":
        return _one_hot(vitals, dataset)
    roles = [{role_of(cell) for cell in cells} for cells in rows["images"]]
    study = dataset.spec.study or StudySpec(1)
    filled = [{study.filled_by(role) for role in found} for found in roles]
    images = [
        [bool(found - {PRIOR}), *(role in slots for role in study.expected)]
        for found, slots in zip(roles, filled, strict=True)
    ]  # N × 1 or more
    return np.column_stack([np.isnan(vitals), np.array(images, dtype=np.float64).reshape(len(rows), -1)])


def _one_hot(vitals: np.ndarray, dataset: CaseDataset) -> np.ndarray:
    """One-hot encode categorical vitals; a numeric vital stays one column."""
    columns = []
    for position, vital in enumerate(dataset.spec.schema.vitals):
        column = vitals[:, position]
        if not vital.categories:
            columns.append(column)
            continue
        columns += [np.where(np.isnan(column), np.nan, column == index) for index in range(len(vital.categories))]
    return np.column_stack(columns) if columns else np.empty((len(vitals), 0))
