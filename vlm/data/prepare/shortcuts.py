"""Find shortcuts: labels predictable from missing values, source or view alone."""

import warnings

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from vlm.data.prepare.columns import FEWEST_PATIENTS, Roles, missing
from vlm.data.prepare.notice import Notice

ALARM = 0.65
MOST_ROWS = 20_000
"""Larger tables are subsampled: an AUROC needs no more, and the check should take seconds."""
FOLDS = 5
REPEATS, FEW_ROWS = 10, 5_000
"""In a small table the AUROC depends on the folds, so it is averaged over several random divisions."""


def check_shortcuts(frame: pd.DataFrame, roles: Roles, patients: np.ndarray) -> list[Notice]:
    """Report each label's AUROC, cross-validated by patient, from missing values, source or view alone."""
    inputs: dict[str, np.ndarray] = {}
    told = {*filter(None, (roles.patient, roles.image, roles.split)), *roles.sources_of_labels}
    others = [column for column in frame.columns if column not in told]
    for what, columns in (("which vitals are missing", list(roles.vitals)),
                          ("which cells of any column are empty", others)):  # fmt: skip
        gaps = [gap for gap in (missing(frame[column]) for column in columns) if 0 < gap.mean() < 1]
        if gaps:
            inputs[what] = np.column_stack(gaps).astype(float)
    for what, column in (("the view", roles.view), ("the source", roles.source)):
        if column:
            inputs[f"{what} ({column})"] = _one_hot(frame[column])
    notices = []
    people = pd.factorize(patients)[0]
    for label, y in roles.labels.items():
        for what, x in inputs.items():
            counts = [len(np.unique(people[y == side])) for side in (1, 0)]
            if min(counts) < FEWEST_PATIENTS or x.shape[1] == 0:
                continue
            auroc = predictability(x, y, people)
            message = (f"{label} can be told from {what} alone with an AUROC of {auroc:.2f} (by patient, {counts[0]:,} "
                       f"positive and {counts[1]:,} negative)")  # fmt: skip
            why = "; a model may learn how the data were collected instead of what the patients have"
            found = auroc > ALARM
            notices.append(Notice("warning" if found else "note", "shortcut", message + why * found))
    return notices


def predictability(x: np.ndarray, y: np.ndarray, patients: np.ndarray) -> float:
    """Compute the AUROC of a logistic regression on N × F inputs, cross-validated by patient."""
    rows = np.flatnonzero(~np.isnan(y))
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_ROWS, replace=False))
    found = []
    for seed in range(REPEATS if len(rows) < FEW_ROWS else 1):
        folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guesses = cross_val_predict(LogisticRegression(max_iter=200), x[rows], y[rows], groups=patients[rows],
                                        cv=folds, method="predict_proba")[:, 1]  # fmt: skip
        found.append(roc_auc_score(y[rows], guesses))
    return float(np.mean(found))


def _one_hot(column: pd.Series, fewest: int = 5) -> np.ndarray:
    """One-hot encode a column; values rarer than `fewest` share one column."""
    words = column.fillna("").astype(str).str.strip()
    common = words.map(words.value_counts()) >= fewest
    return pd.get_dummies(words.where(common, "other")).to_numpy(float)
