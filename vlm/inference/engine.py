"""Draft reports with a loaded model, one case or many, in the order given."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vlm.data.case import Example, implausible_note, make_example, missing_notes, untrained_notes
from vlm.data.collate import Batch, Collator, to_device
from vlm.data.images.image import read_file
from vlm.data.images.square import Square, decode_square
from vlm.data.sections import section_parts, split_sections
from vlm.data.shown_evidence import with_prior_report
from vlm.data.vitals.schema import describe
from vlm.findings.labeller import Labeller
from vlm.findings.structure import stated_findings
from vlm.inference.context import check_context, context_doubts
from vlm.inference.judge import judged
from vlm.inference.lora_merge import merged_lora
from vlm.inference.signal_input import Signal, read_signal
from vlm.inference.study_images import Images, images_read, read_study
from vlm.plain import printable
from vlm.report import NOTICE, Report

if TYPE_CHECKING:  # other engines draft without it, and start sooner
    from vlm.model.clinical_vlm import ClinicalVLM
    from vlm.model.evidence import EvidenceEncoder

MAX_SECONDS = 600.0
Vitals = Mapping[str, Any] | None
Case = (
    tuple[Images, Vitals] | tuple[Images, Vitals, str] | tuple[Images, Vitals, str, str]
    | tuple[Images, Vitals, str, str, Signal]
)  # fmt: skip
"""Images and vitals by name, or None; the context, the report of an earlier study and the signal, if there are any."""
Prepared = tuple[Example, tuple[str, ...]]
"""A case's example for the model, and warnings on what is missing or implausible."""


class Draft(NamedTuple):
    """An engine's output for one case."""

    text: str
    logits: list[float]
    """Logits of the K labels, not calibrated; a probability near 0 or 1 would have lost most of their precision."""
    cut_at: str = ""
    """Limit that cut the text, such as `96 tokens`; empty if it ended by itself."""
    distance: float = math.nan
    """Distance of the image features from those of training; NaN if the adapter does not know them."""


class Engine(ABC):
    """Prepare cases and make reports of drafts; subclasses run the language model."""

    max_seconds: float = MAX_SECONDS
    """Time limit for the drafts of a batch, finished or not."""
    abstain: bool = False
    """Give no draft that is unsure, or of a picture unlike those of training."""

    def __init__(self, model: "EvidenceEncoder") -> None:
        self.model = model
        self.collate = Collator(model.prompt, generation=True)
        self.labeller = Labeller.of_adapter(model.spec.findings)

    @abstractmethod
    def draft(
        self, examples: Iterable[Example], batch_size: int = 16, max_new_tokens: int = 96, streamer: Any = None
    ) -> Iterator[Draft]:
        """Draft prepared examples, in order; a `streamer` of Transformers gets the words as they are generated."""

    def drafting(self) -> AbstractContextManager[None]:
        """Context in which the setup shared by many calls of `draft` is done once."""
        return nullcontext()

    def predict(
        self, cases: Sequence[Case], batch_size: int = 16, max_new_tokens: int | None = None, streamer: Any = None
    ) -> list[Report]:
        """Draft one report a case, of the adapter's length if no other is given.

        Raises `UserError` for an unreadable image or a vital that the adapter does not know.
        """
        prepared = [self.prepare(*case) for case in cases]
        return list(self.reports(prepared, batch_size, max_new_tokens, streamer))

    def reports(
        self, prepared: list[Prepared], batch_size: int = 16, max_new_tokens: int | None = None, streamer: Any = None
    ) -> Iterator[Report]:
        """Draft prepared cases, in order."""
        most = max_new_tokens or self.model.spec.max_new_tokens
        drafts = self.draft([example for example, _ in prepared], batch_size, most, streamer)
        for draft, (example, warnings) in zip(drafts, prepared, strict=True):
            shown = describe(self.model.spec.schema, example["vitals"].tolist())
            rows = self.model.calibration.probabilities(torch.tensor(draft.logits, dtype=torch.float64)).tolist()
            probabilities = dict(zip(self.model.spec.labels, rows, strict=True))
            calibration = self.model.calibration.describe() if probabilities else ""
            room = self.room(example)
            if room is not None and room < most:
                warnings = (*warnings, f"the draft had room for {room:,} tokens, no more can the base read")
            if draft.cut_at:
                warnings = (*warnings, f"the draft is not finished: it was cut at {draft.cut_at}")
            spec, text, finished = self.model.spec, printable(draft.text), not draft.cut_at
            read, parts = images_read(example, spec.study), split_sections(text, spec.sections)
            named = section_parts(text, spec.sections)
            stated = stated_findings(named, self.labeller, probabilities, spec.label_findings)
            report = Report(text, probabilities, shown, warnings, calibration, NOTICE, finished, parts, read, stated)
            yield judged(report, self.model, example, self.labeller, draft.distance, self.abstain)

    def prompt_length(self, example: Example) -> int:
        """Return the number of prompt tokens around the evidence, and of those of further images."""
        prompt = self.model.prompt
        further = prompt.count_evidence(example["image_roles"].numpy()) - prompt.evidence_tokens
        return sum(map(len, prompt.ids(example["context"], example["vitals"].tolist()))) + further

    def room(self, example: Example) -> int | None:
        """Return the most tokens a draft may have; raises `UserError` for a prompt longer than the base's context."""
        return self.model.prompt.room_of(example)

    def read_picture(self, image: str | Path) -> Square:
        """Read an image file as the model sees it; raises `UserError` for an unreadable one."""
        return decode_square(read_file(Path(image)), str(image), self.model.spec.image)

    def prepare(
        self, images: Images, vitals: Vitals, context: str = "", prior_report: str = "", signal: Signal = None
    ) -> Prepared:
        """Read one case's inputs; returns the example and warnings on what is missing or implausible.

        Raises `UserError` for an unreadable image, a vital that the adapter does not know, a context of book length
        or too long for the base, and as `read_study` and `read_signal` do.
        """
        check_context(context)
        check_context(prior_report, "prior report")
        spec = self.model.spec
        warnings: list[str] = []
        x, implausible = spec.schema.parse(vitals or {}, note=warnings.append)
        warnings += [implausible_note(spec.schema, name, value) for name, value in implausible.items()]
        warnings += missing_notes(spec.schema, x, implausible)
        pictures, doubts = read_study(images, spec, self.read_picture)
        samples, unsure = read_signal(signal, spec)
        warnings += [*doubts, *context_doubts(spec, context), *unsure, *untrained_notes(spec, x)]
        example = make_example(spec, pictures, x, context=with_prior_report(context, prior_report), signal=samples)
        self.room(example)
        blank = len(pictures) - int(example["has_image"]) * len(example["pixel_values"])
        if blank:
            which = "the image is blank and was" if len(pictures) == 1 else f"{blank} of the images are blank and were"
            warnings.append(f"{which} taken as none")
        return example, tuple(warnings)

    def to_device(self, batch: Batch) -> Batch:
        """Move a batch to the model's device."""
        return to_device(batch, self.model.device)


class ReportEngine(Engine):
    """PyTorch engine: drafts cases greedily in batches, on a GPU or a CPU."""

    model: "ClinicalVLM"

    def drafting(self) -> AbstractContextManager[None]:
        return merged_lora(self.model)

    def draft(
        self, examples: Iterable[Example], batch_size: int = 16, max_new_tokens: int = 96, streamer: Any = None
    ) -> Iterator[Draft]:
        with self.drafting():
            from transformers import StoppingCriteriaList  # other engines start without this library

            from vlm.model.bases.prefix_reuse import drafts_together

            fixed = self.model.prefix_kv_cache()
            for batch in batches(examples, batch_size):
                drafts: dict[int, Draft] = {}
                for rows in drafts_together(self.model.prefix_reuse, batch, self.prompt_length):
                    inputs = self.to_device(self.collate([batch[row] for row in rows]))
                    longest = int(inputs["attention_mask"].sum(dim=1).max())
                    most = self.model.prompt.most_new_tokens(longest, max_new_tokens)
                    limit = _Limits(self.max_seconds, most, self.model.prompt.end_id)
                    stop = StoppingCriteriaList([limit])
                    texts, fused = self.model.generate(inputs, most, fixed, streamer=streamer, stopping_criteria=stop)
                    found = zip(rows, texts, fused.logits.tolist(), fused.distance.tolist(), strict=True)
                    for number, (row, text, logits, distance) in enumerate(found):
                        cut_at = limit.cut_at if number in limit.unfinished else ""
                        drafts[row] = Draft(text, logits, cut_at, distance)
                yield from (drafts[row] for row in range(len(batch)))


class _Limits:
    """Stop the drafts of a batch after some seconds, and record which of them did not end by themselves."""

    def __init__(self, seconds: float, most: int, end: int) -> None:
        self.seconds, self.most, self.end = seconds, most, end
        self.until = time.monotonic() + seconds
        self.unfinished: set[int] = set()
        self.cut_at = ""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """Return for B × n new tokens whether to stop, B."""
        over = time.monotonic() > self.until
        if over or ids.shape[1] >= self.most:
            self.unfinished = set((ids != self.end).all(dim=1).nonzero().flatten().tolist())
            self.cut_at = f"{self.most} tokens" if ids.shape[1] >= self.most else f"{self.seconds:g} seconds"
        return torch.full((len(ids),), over, device=ids.device)


def batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """Yield lists of at most `size`, in order."""
    rest = iter(examples)
    while batch := list(islice(rest, size)):
        yield batch
