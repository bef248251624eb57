"""A small reader study without a run, and answers to it, for tests."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from vlm.reader_study.answers import Answer, Answers, Judgement
from vlm.reader_study.blinding import merge_same, shuffled_pages
from vlm.reader_study.study_file import IMAGES, Layout, Picture, Reader, Study, StudyCase, write_study

CODES = {"aaaa-bbbb-cccc": 1, "dddd-eeee-ffff": 2}


def small_study(cases: int = 12, readers: int = 2, layout: Layout = "single", alike: Sequence[int] = ()) -> Study:
    """One case a patient, with a draft and a reference, which are the same text in the cases `alike`."""
    made = []
    for place in range(cases):
        draft = f"Report A{place}, <b>bold</b>."
        texts = merge_same([("draft", draft), ("reference", draft if place in alike else f"Report B{place}.")])
        pictures = [Picture(f"{place + 1:04}-1.png", "PA image")] if place else []
        made.append(StudyCase(place + 1, {"age": f"{40 + place} a"}, pictures, texts, "Cough & fever"))
    pages = [Reader(shuffled_pages(made, layout, 0, reader)) for reader in range(1, readers + 1)]
    return Study(1, "tiny", 0, layout, ["draft", "reference"], made, pages)


def written(study: Study, folder: Path) -> Path:
    """Write the folder of a study."""
    (folder / IMAGES).mkdir(parents=True)
    write_study(folder, study, CODES)
    for case in study.cases:
        for picture in case.images:
            cv2.imwrite(str(folder / IMAGES / picture.file), np.full((6, 8), 99, np.uint8))
    return folder


def answer(
    study: Study, reader: int, page: int, verdicts: Sequence[str], errors: Sequence[Sequence[str]] = (), **other: object
) -> Answer:
    """An answer with these verdicts, in the order shown."""
    kinds = errors or [()] * len(verdicts)
    said = [Judgement(verdict, list(some)) for verdict, some in zip(verdicts, kinds, strict=True)]
    values = {"given": "2026-01-01T00:00:00Z", "seconds": 10.0, "showings": 1} | other
    return Answer(study.digest, reader, page, judgements=said, **values)  # type: ignore[arg-type]


def judge_all(study: Study, verdict_of: dict[tuple[int, str], str], **other: object) -> Answers:
    """Answers of all readers: the verdict of (reader, source), the first source of a text deciding."""
    answers = {}
    for reader, shown in enumerate(study.readers, 1):
        for number, page in enumerate(shown.pages, 1):
            sources = [study.cases[page.case].texts[place].sources[0] for place in page.texts]
            verdicts = [verdict_of[reader, source] for source in sources]
            answers[reader, number] = answer(study, reader, number, verdicts, **other)
    return answers


def line(given: Answer) -> bytes:
    """The line of an answer."""
    return (json.dumps(asdict(given)) + "\n").encode()
