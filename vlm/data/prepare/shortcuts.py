"""Labels that can be told without looking at the patient: from what was recorded, where, and how."""

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
"""More are sampled: an AUROC needs no more, and the check should take seconds."""
FOLDS = 5
REPEATS, FEW_ROWS = 10, 5_000
"""In a small table the AUROC hangs on who is in which fold: it is the mean of several divisions."""


def check_shortcuts(frame: pd.DataFrame, roles: Roles, patients: np.ndarray) -> list[Notice]:
    """AUROC, cross-validated by patient, of each label from missing values alone, from the source and the view."""
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
    """AUROC of a logistic regression on N × F inputs, by cross-validation over patients."""
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
    """The values that some rows share; what is seldom has no column of its own."""
    words = column.fillna("").astype(str).str.strip()
    common = words.map(words.value_counts()) >= fewest
    return pd.get_dummies(words.where(common, "other")).to_numpy(float)
