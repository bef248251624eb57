"""The test at the end of a run: metrics.json, predictions.jsonl and figures."""

import json
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm.config import Config
from vlm.data.cohort import Cohort, FactReader
from vlm.data.examples import CaseDataset
from vlm.evaluation.arms import ARMS, Arm, ArmCases, all_right
from vlm.evaluation.figures import correlation_figure, loss_figure
from vlm.evaluation.intervals import patient_bootstrap
from vlm.evaluation.scoring import CaseScores, label_auroc, score_cases
from vlm.inference.engine import ReportEngine
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.run_folder import RunFolder, read_log

Drafts = list[tuple[str, dict[str, float]]]
"""Report and label probabilities of each case."""


def evaluate(
    model: ClinicalVLM,
    cohort: Cohort,
    test: CaseDataset,
    config: Config,
    folder: RunFolder,
    untrained: CaseScores,
) -> dict[str, Any]:
    """Measure the trained model on the test split and write what it did; returns the metrics."""
    draw_figures(cohort, config, folder)
    options = config.evaluation
    scores = score_cases(model, test, options.batch_size, "test")
    # Only facts tell whether a report follows what is shown, so only they are worth the other arms' drafts.
    arms = [ArmCases(arm, test) for arm in (ARMS if cohort.facts else ARMS[:1]) if _applies(arm, config)]
    drafts = {cases.arm.name: draft(model, cases, config) for cases in arms}
    metrics: dict[str, Any] = {
        "cases": len(test),
        "patients": len(set(test.rows["patient"])),
        "text_loss": text_loss_metric(scores, test, options.bootstrap_draws),
        "text_loss_untrained": text_loss_metric(untrained, test, options.bootstrap_draws),
        "labels": label_metrics(scores, test, model.spec.labels, options.bootstrap_draws),
        "distinct_reports": len({text for text, _ in drafts["as_given"]}),
    }
    if cohort.facts is not None:
        metrics["facts"] = {
            cases.arm.name: fact_metrics(cases, cohort.facts, drafts[cases.arm.name], options.bootstrap_draws)
            for cases in arms
        }
    write_predictions(folder, test, scores, drafts["as_given"], model.spec.labels)
    folder.metrics.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def _applies(arm: Arm, config: Config) -> bool:
    """Only the first arm where no ablation is wanted; no arm about evidence that the whole run withholds."""
    changed = {name for name, shown in (("image", arm.image), ("vitals", arm.vitals)) if shown != "own"}
    return not changed or (config.evaluation.ablation and not changed & set(config.data.withhold))


def draft(model: ClinicalVLM, cases: ArmCases, config: Config) -> Drafts:
    """Draft every case of an arm."""
    engine, options = ReportEngine(model), config.evaluation
    drafts = engine.draft(cases.examples(), options.batch_size, options.max_new_tokens)
    return list(tqdm(drafts, total=len(cases), desc=f"drafting: {cases.arm.name}", unit="report", leave=False))


def text_loss_metric(scores: CaseScores, test: CaseDataset, draws: int) -> dict[str, float | None]:
    """Cross-entropy per token of the reference reports, nats."""

    def per_token(rows: np.ndarray) -> float:
        tokens = scores.tokens[rows].sum()
        return float(scores.losses[rows].sum() / tokens) if tokens else float("nan")

    return patient_bootstrap(per_token, test.rows["patient"], draws)._asdict()


def label_metrics(
    scores: CaseScores, test: CaseDataset, labels: tuple[str, ...], draws: int
) -> dict[str, dict[str, Any]]:
    """AUROC of each label with its interval, and how many cases it rests on."""
    metrics = {}
    for k, label in enumerate(labels):
        area = patient_bootstrap(partial(label_auroc, scores, k), test.rows["patient"], draws)
        counts = {
            "positives": int((scores.targets[:, k] == 1).sum()),
            "negatives": int((scores.targets[:, k] == 0).sum()),
        }
        metrics[label] = {"auroc": area._asdict(), **counts}
    return metrics


def fact_metrics(cases: ArmCases, reader: FactReader, drafts: Drafts, draws: int) -> dict[str, Any]:
    """Shares of reports that state every image fact, and every vitals fact, of what they were shown."""
    wanted, stated = cases.facts(reader), [reader.read(text) for text, _ in drafts]
    names = {kind: [n for n, k in reader.evidence.items() if k == kind] for kind in ("image", "vitals")}
    shown, everyone = cases.image_donor >= 0, np.ones(len(cases), dtype=bool)
    asserted = np.array([any(fact[name] not in (None, "no image") for name in names["image"]) for fact in stated])
    patients = np.array(cases.dataset.rows["patient"], dtype=object)

    def share(hits: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        hits = hits[rows]
        return {
            **patient_bootstrap(lambda r: float(hits[r].mean()), patients[rows], draws)._asdict(),
            "cases": int(rows.sum()),
        }

    return {
        "image_facts_right": share(all_right(stated, wanted, names["image"]), shown),
        "vitals_facts_right": share(all_right(stated, wanted, names["vitals"]), everyone),
        "finding_asserted_without_image": share(asserted, ~shown),
    }


def write_predictions(
    folder: RunFolder, test: CaseDataset, scores: CaseScores, drafts: Drafts, labels: tuple[str, ...]
) -> None:
    """One row a test case."""
    with folder.predictions.open("w", encoding="utf-8") as out:
        for index, (report, probabilities) in enumerate(drafts):
            example, row = test[index], test.rows[index]
            known = [None if np.isnan(value) else int(value) for value in scores.targets[index]]
            out.write(
                json.dumps(
                    {
                        "id": row["id"],
                        "patient": row["patient"],
                        "reference": example["report"],
                        "report": report,
                        "labels": dict(zip(labels, known, strict=True)),
                        "probabilities": {name: round(value, 6) for name, value in probabilities.items()},
                        "text_loss": round(float(scores.losses[index]), 4),
                        "tokens": int(scores.tokens[index]),
                    },
                    ensure_ascii=False,
                )
                + "\n"
            )


def draw_figures(cohort: Cohort, config: Config, folder: RunFolder) -> None:
    """Correlations of all cases, and the losses of the run."""
    probability = np.array(cohort.dataset["probability"], dtype=np.float64)
    vitals = np.array(cohort.dataset["vitals"], dtype=np.float64).reshape(len(probability), len(cohort.schema))
    name = "pathology probability"
    if np.isnan(probability).all() and cohort.labels:
        probability, name = np.array(cohort.dataset["labels"], dtype=np.float64)[:, 0], f"label {cohort.labels[0]}"
    table = np.column_stack([vitals, probability])
    title = f"Vitals and pathology, {len(table):,} cases"
    correlation_figure(table, [*cohort.schema.names, name], folder.figures / "correlation.png", title)
    loss_figure(read_log(folder.log), folder.figures / "losses.png", config.loss.head_only_steps)
