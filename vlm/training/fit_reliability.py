"""Fit on the validation split what an adapter's drafts are judged by, and print what could not be fitted."""

from dataclasses import replace

import numpy as np
import torch

from vlm.config import Config
from vlm.data.collate import Collator, to_device
from vlm.data.dataset import CaseDataset
from vlm.data.sections import section_parts
from vlm.data.splits import draw_cases
from vlm.data.storage import matrix
from vlm.distributed import log_rank0
from vlm.evaluation.arms import ARMS, ArmCases
from vlm.evaluation.drafting import DraftCache, draft
from vlm.evaluation.scoring import CaseScores
from vlm.findings.labeller import Labeller
from vlm.findings.structure import statements_of_labels
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.progress import progress
from vlm.reliability.familiarity import FALSE_ALARMS, FEWEST_PICTURES, MOST_PICTURES, Familiarity
from vlm.reliability.label_sets import conformal_quantile, fewest_patients, fit_label_sets
from vlm.reliability.sentences import FEWEST_DRAFTS, SentenceFit, fit_sentences, is_wrong, read_sentences
from vlm.reliability.thresholds import Reliability


def fit_reliability(
    model: ClinicalVLM,
    train: CaseDataset,
    validation: CaseDataset,
    scores: CaseScores,
    config: Config,
) -> None:
    """Fit into the model the label sets, how unlike a picture may be, and how sure a sentence is.

    `scores` are those of the validation split; the model's calibration must be fitted before.
    """
    options = config.evaluation
    coverage = options.coverage
    probabilities = model.calibration.probabilities(torch.from_numpy(scores.logits).double()).numpy()  # N × K
    labels, patients = model.spec.labels, validation.rows["patient"]
    sets, lines = fit_label_sets(probabilities, scores.targets, patients, labels, coverage)
    familiarity, unlike_above, line = fit_familiarity(model, train, validation, options.batch_size)
    sentences, said = fit_confidence(model, validation, config)
    log_rank0(*lines, line, said)
    model.spec, model.familiarity = replace(model.spec, familiarity=familiarity.count), familiarity.to(model.device)
    fitted = sets or unlike_above or sentences is not None
    model.reliability = Reliability(coverage, sets, unlike_above, sentences) if fitted else Reliability()


def fit_confidence(model: ClinicalVLM, validation: CaseDataset, config: Config) -> tuple[SentenceFit | None, str]:
    """Fit how sure a sentence is on drafts of validation cases; returns a line on it as well.

    At most `evaluation.sentence_cases` are drafted, and none where it would be for nothing.
    """
    most, spec = config.evaluation.sentence_cases, model.spec
    labeller = Labeller.of_adapter(spec.findings)  # as at use
    statements = statements_of_labels(spec.labels, labeller, spec.label_findings)
    kept = np.flatnonzero([bool(report) for report in validation.reports])
    some = validation.select(kept)
    some = some.select(draw_cases(some.rows, most))
    patients = [str(name) for name in some.rows["patient"]]
    if not most or not statements or len(set(patients)) < FEWEST_DRAFTS:
        why = ("evaluation.sentence_cases is 0" if not most else "no label stands for a finding" if not statements
               else f"{len(set(patients))} validation patients with a report, {FEWEST_DRAFTS} needed")  # fmt: skip
        return None, f"confidence of sentences: none ({why})"
    drafts = draft(model, ArmCases(ARMS[0], some), config, DraftCache())
    logits = torch.tensor([one.logits for one in drafts], dtype=torch.float64)
    probabilities = model.calibration.probabilities(logits).tolist()
    vitals = matrix(some.rows, "vitals", len(spec.schema)).tolist()
    judged = []
    for one, row, values, reference in zip(drafts, probabilities, vitals, some.reports, strict=True):
        parts, known = section_parts(one.text, spec.sections), dict(zip(spec.labels, row, strict=True))
        read = read_sentences(parts, labeller, statements, known, values, spec.schema)
        judged.append([(sentence, is_wrong(sentence.text, reference, labeller)) for sentence in read])
    return fit_sentences(judged, patients, config.evaluation.unsure_share)


def fit_familiarity(
    model: ClinicalVLM, train: CaseDataset, validation: CaseDataset, batch_size: int
) -> tuple[Familiarity, float, str]:
    """Fit the distance to training pictures, and the threshold to validation pictures; returns a line on it as well.

    At most `MOST_PICTURES` of each split are looked at, without dropout and augmentation.
    """
    nothing = Familiarity(model.vision.summary_size, 0)
    features, _ = image_summaries(model, train, _some(train), batch_size)
    if len(features) < FEWEST_PICTURES:
        return nothing, 0.0, f"unlike pictures: not told ({len(features)} training pictures, {FEWEST_PICTURES} needed)"
    asked, rows = image_summaries(model, validation, _some(validation), batch_size)
    patients = np.array(validation.rows["patient"], dtype=object)[rows].astype(str)
    count, needed = len(set(patients)), fewest_patients(1 - FALSE_ALARMS)
    if count < needed:
        return nothing, 0.0, f"unlike pictures: not told ({count} validation patients with one, {needed} needed)"
    familiarity = Familiarity.fit(features)
    distances = familiarity(torch.from_numpy(asked)).double().numpy()
    above = conformal_quantile(distances, patients, 1 - FALSE_ALARMS)
    seen = f"{familiarity.count} directions of {len(features)} training pictures, {len(asked)} validation pictures"
    return familiarity, above, f"unlike pictures: further than {above:.3g} ({seen}, {FALSE_ALARMS:.0%} beyond it)"


def _some(dataset: CaseDataset) -> np.ndarray:
    """Choose at most `MOST_PICTURES` cases with an image, spread over the split."""
    rows = np.flatnonzero([len(images) > 0 for images in dataset.rows["images"]])
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_PICTURES)).astype(int))]


@torch.no_grad()
def image_summaries(
    model: ClinicalVLM, dataset: CaseDataset, rows: np.ndarray, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the vector f of some cases, without dropout and augmentation; n × F, and the rows that show a picture."""
    was_training = model.training
    model.eval()
    plain = torch.utils.data.Subset(replace(dataset, dropout=None), rows.tolist())
    found, shown = [np.empty((0, model.vision.summary_size), np.float32)], [np.empty(0, bool)]
    loader = torch.utils.data.DataLoader(plain, batch_size, collate_fn=Collator(model.prompt))
    for batch in progress(loader, "comparing pictures"):
        seen = to_device(batch, model.device)
        with model.autocast():
            image = model.vision(seen["pixel_values"], seen["has_image"], seen["image_roles"])
        found.append(image.f[seen["has_image"]].float().cpu().numpy())
        shown.append(batch["has_image"].numpy())
    model.train(was_training)
    return np.concatenate(found), rows[np.concatenate(shown)]
