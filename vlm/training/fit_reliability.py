"""Fit on the validation split what an adapter's drafts are judged by, and print what could not be fitted."""

import torch

from vlm.data.dataset import CaseDataset
from vlm.distributed import log_rank0
from vlm.evaluation.scoring import CaseScores
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.reliability.label_sets import fit_label_sets
from vlm.reliability.thresholds import Reliability


def fit_reliability(model: ClinicalVLM, validation: CaseDataset, scores: CaseScores, coverage: float) -> Reliability:
    """Fit the label sets.

    `scores` are those of the validation split; the model's calibration must be fitted before.
    """
    probabilities = model.calibration.probabilities(torch.from_numpy(scores.logits).double()).numpy()  # N × K
    patients = validation.rows["patient"]
    sets, lines = fit_label_sets(probabilities, scores.targets, patients, model.spec.labels, coverage)
    log_rank0(*lines)
    return Reliability(coverage, sets) if sets else Reliability()
