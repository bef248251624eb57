"""Ways to train the text, each on the kept encoder and head of runs of configs/ham10000.yaml.

    python -m benchmarks.text_options runs/ham10000-seed0 runs/ham10000-seed1

The encoder and the head of a run are kept still, their features are computed once, and projectors and LoRA start anew
with the run's seed. Each way learns on the same batches for the same steps, is measured on the same unseen lesions, and
is compared with the first, `plain`, in pairs. What a way made of a run is kept in the run's `text_options.json`, and is
not made again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from benchmarks.dermoscopy import DIAGNOSES, WORDS, unit, words_of
from benchmarks.text_losses import evidence_weights, finding_weights, reward_loss, weighted_loss
from benchmarks.text_table import table
from benchmarks.text_ways import WAYS, Way
from vlm.adapter import starting_weights
from vlm.config import AugmentConfig
from vlm.config.parsing import parse_config
from vlm.data.case import Example
from vlm.data.cohort import Cohort
from vlm.data.collate import Collator
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.data.splits import draw_cases
from vlm.data.study_features import StudyFeatures
from vlm.device import choose_precision, choose_threads
from vlm.evaluation.arms import ARMS, ArmCases
from vlm.evaluation.scoring import score_cases
from vlm.findings.labeller import Labeller
from vlm.inference.engine import ReportEngine
from vlm.inference.features import keep_features
from vlm.training.optimizer import make_optimizer, make_schedule, part_of
from vlm.training.run import build_model, case_dataset

CPU = torch.device("cpu")
FOLDS = 5
CHECKS, CHECKED = 4, 64
"""Checkpoints of which one is kept, and validation cases by which it is chosen."""
FURTHER = 0.25
"""Share of further steps on the reward, or without it as its control."""


class Job:
    """The model of one way on one run's encoder and head, and its data."""

    def __init__(self, run: Path, way: Way, cases: int, kept: list[StudyFeatures] | None = None) -> None:
        """`kept` holds the features of training and test cases, or takes them."""
        self.way = way
        options = [f"--{key}={json.dumps(value)}" for key, value in way.options.items()]
        config, _ = parse_config(["--config", str(run / "config.yaml"), "--model.vision.train=false", *options])
        config = replace(config, data=replace(config.data, augment=AugmentConfig()))
        self.config = replace(config, evaluation=replace(config.evaluation, cases=cases))
        cohort = load_cohort(config.data)
        self.labeller = Labeller.load(config.data.findings)
        self.model = build_model(self.config, cohort, CPU, choose_precision(config.train.precision, CPU).value)
        weights = starting_weights(self.model, run / "adapter")
        self.model.load_state_dict({k: v for k, v in weights.items() if part_of(k) in ("cnn", "head")}, strict=False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and part_of(name) in ("llm", "tokens"))
        self.train, self.test = self._splits(cohort, [] if kept is None else kept)
        self.known = self.shown_logits()
        if way.context:
            self.show_reports(way.context)
        words = self.model.evidence.label_words
        if words is None:
            raise SystemExit(f"{run}: model.fusion.label_words is off")
        words.register_forward_pre_hook(self._replace_logits)
        self.ids: list[str] = []
        """Cases of the training step, "" for one whose image is withheld; none otherwise."""
        self.best: tuple[float, dict[str, torch.Tensor]] | None = None
        """Gap and weights of the checkpoint to keep."""
        validation = case_dataset(self.config, self.model.spec, cohort, "validation")
        some = validation.select(draw_cases(validation.rows, CHECKED))
        self.validation = [ArmCases(arm, some) for arm in ARMS[:2]]
        """Validation cases as given, and with the pictures swapped."""

    def _splits(self, cohort: Cohort, kept: list[StudyFeatures]) -> tuple[CaseDataset, CaseDataset]:
        train, test = (case_dataset(self.config, self.model.spec, cohort, name) for name in ("train", "test"))
        if kept:
            train.features, test.features = kept
        else:
            keep_features(self.model, self.config, [train, test], 64)
            kept += [data.features for data in (train, test) if data.features is not None]
        return train, test

    # ------------------------------------------------------------------------------------ what is shown

    @torch.no_grad()
    def shown_logits(self) -> dict[str, torch.Tensor]:
        """Compute the logits that replace the head's own in training, by the case's id; K each."""
        model, way = self.model.eval(), self.way.shown
        if way != "crossfit":
            return {}
        loader = torch.utils.data.DataLoader(replace(self.train, dropout=None), 256,
                                             collate_fn=Collator(model.prompt, with_ids=True))  # fmt: skip
        ids, inputs = [], []
        for batch in loader:
            ids += batch["ids"]
            image, vitals = model.vision(batch["pixel_values"], batch["has_image"]), model.vitals(batch["vitals"])
            inputs.append(model.joint(image.f.float(), vitals[1].float())[0])
        return dict(zip(ids, self.crossfit(torch.cat(inputs).numpy()), strict=True))

    def crossfit(self, z: np.ndarray) -> torch.Tensor:
        """Fit a regression of each label on z (N × Z), out of fold by lesion; returns logits, N × K."""
        targets, lesions = np.array(self.train.rows["labels"]), np.array(self.train.rows["patient"])
        folds = list(GroupKFold(FOLDS).split(z, groups=lesions))
        model = LogisticRegression(C=0.01, max_iter=500)
        columns = [
            cross_val_predict(model, z, y, cv=folds, method="predict_proba")[:, 1] for y in targets.T.astype(int)
        ]
        return torch.tensor(np.stack(columns, axis=1), dtype=torch.float32).logit(1e-6)

    def _replace_logits(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        logits, lacking = inputs
        if not self.ids:
            return logits, lacking
        if self.way.shown == "sampled":
            return self.sampled(logits), lacking
        if self.way.shown == "costs":
            return logits + self.model.evidence.label_words.sooner, lacking  # type: ignore[union-attr]
        rows = [self.known.get(name, own) for name, own in zip(self.ids, logits, strict=True)]
        return torch.stack(rows), lacking

    def sampled(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw each label, and one of each group, by the head's probabilities; B × K → logits of ±10."""
        groups = self.model.evidence.label_words.groups  # type: ignore[union-attr]
        drawn = torch.where(torch.rand_like(logits) < logits.sigmoid(), 10.0, -10.0)
        for group in groups:
            p = logits[:, group].sigmoid()
            chosen = torch.multinomial(p, 1)  # B × 1
            drawn[:, group] = torch.full_like(p, -10.0).scatter(1, chosen, 10.0)
        return drawn

    def show_reports(self, kind: str) -> None:
        """Show each case the report of another training lesion, as its context."""
        known, asked = (unit(data.features.values[:, -1]) for data in (self.train, self.test))  # type: ignore[union-attr]
        lesions = np.array(self.train.rows["patient"])
        reports = np.array(self.train.reports, dtype=object)
        rng = np.random.default_rng(0)
        for data, features in ((self.train, known), (self.test, asked)):
            likeness = features @ known.T if kind == "nearest" else rng.random((len(features), len(known)))
            likeness[np.array(data.rows["patient"])[:, None] == lesions[None]] = -2
            texts = [f"A similar lesion: {text}" for text in reports[likeness.argmax(axis=1)]]
            data.rows = data.rows.remove_columns("context").add_column("context", texts)

    # ------------------------------------------------------------------------------------ training

    def learn(self, steps: int, batch_size: int) -> None:
        """Train projectors and LoRA; the batches are those of the run's seed."""
        more = round(FURTHER * steps) if self.way.further else 0
        torch.manual_seed(self.config.train.seed)
        train = replace(self.config.train, warmup_steps=max(1, steps // 10))
        parameters = self.model.trainable_parameters()
        optimizer = make_optimizer(self.model, train)
        schedule = make_schedule(optimizer, train, steps + (more if self.way.further == "longer" else 0), 0)
        for step, examples in enumerate(self.batches(steps + more, batch_size)):
            rewarded = step >= steps and self.way.further == "reward"
            self.loss(examples, rewarded).backward()
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
            for name, parameter in parameters.items():
                if step < self.way.lora_rests * steps and part_of(name) == "llm":
                    parameter.grad = None
            for group, rate in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
                group["lr"] = rate / 10 if rewarded else group["lr"]  # the schedule has ended
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if self.way.kept and (step + 1) % (steps // CHECKS) == 0:
                self.check(step + 1)
        if self.best:
            self.model.load_state_dict(self.best[1], strict=False)

    def check(self, step: int) -> None:
        """Keep the weights if pictures are used more than at every earlier check, by validation cases."""
        as_given, swapped = (score_cases(self.model, cases, 32, "validation") for cases in self.validation)
        loss, other = (float(scores.losses.sum() / scores.tokens.sum()) for scores in (as_given, swapped))
        print(f"step {step}: validation loss {loss:.4f}, gap {other - loss:+.4f}", flush=True)
        if self.best is None or other - loss > self.best[0]:
            weights = {name: value.detach().clone() for name, value in self.model.trainable_parameters().items()}
            self.best = other - loss, weights

    def batches(self, steps: int, batch_size: int) -> Iterator[list[Example]]:
        """Yield the examples of each step."""
        order = np.random.default_rng(self.config.train.seed).permutation(len(self.train))
        for step in range(steps):
            self.train.set_epoch(step)  # the seed of its dropout
            rows = order[np.arange(step * batch_size, (step + 1) * batch_size) % len(order)]
            yield [self.train[int(row)] for row in rows]

    def loss(self, examples: list[Example], rewarded: bool) -> torch.Tensor:
        """Compute the loss of a step."""
        batch: Any = Collator(self.model.prompt, with_ids=True)(examples)
        names = zip(batch.pop("ids"), batch["has_image"].tolist(), strict=True)
        self.ids = [name * there for name, there in names]
        self.model.train()
        with self.model.autocast():
            if rewarded:
                loss = reward_loss(self.model, examples, batch, self.reward)
            else:
                loss = weighted_loss(self.model, batch, self.weights_of())
        self.ids = []
        return loss

    def weights_of(self) -> Callable[..., torch.Tensor] | None:
        if self.way.weights == "findings":
            return partial(finding_weights, labeller=self.labeller)
        return evidence_weights if self.way.weights == "evidence" else None

    def reward(self, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Compute the share of the four words that each text has right; N."""
        return self.right(texts, references).mean(axis=1)

    def right(self, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """Check diagnosis, size, outline and tone of each text; N × 4."""
        said, has = ([words_of(list(t), names, self.labeller) for names in WORDS.values()] for t in (texts, references))
        return np.stack([a == b for a, b in zip(said, has, strict=True)], axis=1)

    # ------------------------------------------------------------------------------------ the test

    def measure(self) -> dict[str, list[Any]]:
        """Score and draft the test cases; a list of N for each measure."""
        options = self.config.evaluation
        scores = score_cases(self.model, self.test, options.batch_size, "test")
        engine = ReportEngine(self.model.eval())
        cases = (self.test[index] for index in range(len(self.test)))
        drafts = [draft.text for draft in engine.draft(cases, options.batch_size, options.max_new_tokens)]
        labels = list(self.model.spec.labels)
        of_head = scores.logits[:, [labels.index(name) for name in DIAGNOSES]]
        return {
            "lesion": list(self.test.rows["patient"]),
            "loss": scores.losses.tolist(),
            "tokens": scores.tokens.tolist(),
            "right": self.right(drafts, self.test.reports).astype(int).tolist(),
            "said": words_of(drafts, DIAGNOSES, self.labeller).tolist(),
            "is": words_of(self.test.reports, DIAGNOSES, self.labeller).tolist(),
            "head": of_head.argmax(axis=1).tolist(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs of configs/ham10000.yaml")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(choose_threads(options.threads).value)
    made = {run.name: ways_of(run, options) for run in options.runs}
    names = [name for name in WAYS if any(name in ways for ways in made.values())]
    print(table({name: {run: ways[name] for run, ways in made.items() if name in ways} for name in names}))


def ways_of(run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure the ways that the run's file lacks; returns all that it has then."""
    file = run / "text_options.json"
    made: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    kept: list[StudyFeatures] = []
    for name in options.ways:
        if name not in made:
            start = time.perf_counter()
            job = Job(run, WAYS[name], options.cases, kept)
            job.learn(options.steps, options.batch_size)
            made[name] = job.measure()
            file.write_text(json.dumps(made))
            print(f"{run.name}, {name}: {time.perf_counter() - start:.0f} s", flush=True)
    return made


if __name__ == "__main__":
    main()
