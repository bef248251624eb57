"""Read and write study.json: the cases without names, their texts, and the pages that each reader is shown."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vlm.atomic import write_file
from vlm.config.strict import from_dict
from vlm.errors import UserError
from vlm.untrusted import parse_json

FORMAT = 1
STUDY, CODES, ANSWERS, IMAGES = "study.json", "codes.json", "answers.jsonl", "images"
"""Files of a study's folder. Only the first names the sources; only the second opens a reader's pages."""
LARGEST = 64 << 20
"""Most bytes of study.json."""
MOST_CASES, MOST_READERS, MOST_SOURCES = 1000, 50, 8
OURS, REFERENCE = "draft", "reference"
_IMAGE = re.compile(r"\d{4}-\d{1,3}\.png", re.ASCII)
_CODE = re.compile(r"[a-z2-9]{4}(-[a-z2-9]{4}){2}", re.ASCII)
Layout = Literal["single", "side_by_side"]


@dataclass(frozen=True)
class Picture:
    """An image of a case."""

    file: str
    """Name in the folder of images."""
    caption: str
    """Role in the study, such as `PA image`; empty if there is one image without a role."""


@dataclass(frozen=True)
class Text:
    """A text to judge."""

    text: str
    sources: list[str]
    """Sources that wrote it; several where they wrote the same, so that it is judged once."""


@dataclass(frozen=True)
class StudyCase:
    """A case as a reader sees it, and its texts."""

    patient: int
    """Number of the patient within this study, from 1."""
    vitals: dict[str, str]
    """Name → value with its unit."""
    images: list[Picture]
    texts: list[Text]
    context: str = ""
    """The indication."""
    prior_report: str = ""
    """Report of the earlier study."""


@dataclass(frozen=True)
class Page:
    """What a reader judges at a time."""

    case: int
    """Place of the case in the study, from 0."""
    texts: list[int]
    """Places of the shown texts in the case, in the order shown."""


@dataclass(frozen=True)
class Reader:
    """What one reader judges."""

    pages: list[Page]
    """In the order shown."""


@dataclass(frozen=True)
class Study:
    """A whole study."""

    format: int
    run: str
    """Name of the run whose drafts are judged."""
    seed: int
    layout: Layout
    sources: list[str]
    """Names of the sources, `draft` first."""
    cases: list[StudyCase]
    readers: list[Reader]

    @cached_property
    def digest(self) -> str:
        """Hash of the content, which each answer names."""
        return hashlib.sha256(_serialised(self)).hexdigest()[:16]

    def check(self, where: str) -> None:
        """Raise `UserError` for a place, name or number that does not fit the rest."""
        faults = {
            f"format must be {FORMAT}": self.format != FORMAT,
            "the cases, readers or sources are none or too many": not (
                0 < len(self.cases) <= MOST_CASES
                and 0 < len(self.readers) <= MOST_READERS
                and 0 < len(self.sources) <= MOST_SOURCES
            ),
            "sources must begin with draft, each once": self.sources[:1] != [OURS]
            or len(set(self.sources)) < len(self.sources),
            "each case needs one text of each source": any(
                sorted(name for text in case.texts for name in text.sources) != sorted(self.sources)
                or not all(text.sources for text in case.texts)
                for case in self.cases
            ),
            "an image has no name of ours": any(
                not _IMAGE.fullmatch(picture.file) for case in self.cases for picture in case.images
            ),
            "each reader judges every text once": any(not self._covers(reader.pages) for reader in self.readers),
        }
        for fault, found in faults.items():
            if found:
                raise UserError(f"{where}: {fault}; make the study anew")

    def _covers(self, pages: list[Page]) -> bool:
        shown = sorted((page.case, text) for page in pages for text in page.texts)
        wanted = [(place, text) for place, case in enumerate(self.cases) for text in range(len(case.texts))]
        return shown == wanted and all(page.texts for page in pages)


def write_study(folder: Path, study: Study, codes: Mapping[str, int]) -> None:
    """Write study.json and codes.json, code → number of the reader from 1, into a folder."""
    write_file(folder / STUDY, _serialised(study))
    write_file(folder / CODES, (json.dumps(codes, indent=2) + "\n").encode())


def read_study(folder: Path) -> Study:
    """Read and check study.json; raises `UserError` for a folder without one, and for one that is not as written."""
    values = _read(folder / STUDY)
    study: Study = from_dict(Study, values, str(folder / STUDY))
    study.check(str(folder / STUDY))
    return study


def read_codes(folder: Path, study: Study) -> dict[str, int]:
    """Read the code of each reader; raises `UserError` where one is malformed or opens no reader's pages."""
    codes = _read(folder / CODES)
    known = range(1, len(study.readers) + 1)
    for code, reader in codes.items() if isinstance(codes, dict) else [("", None)]:
        if not _CODE.fullmatch(code) or type(reader) is not int or reader not in known:
            raise UserError(f"{folder / CODES}: must map codes, xxxx-xxxx-xxxx, to readers 1 to {len(study.readers)}")
    return dict(codes)


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{file}: larger than {LARGEST >> 20} MiB")
        return parse_json(file.read_bytes(), longest=MOST_CASES * MOST_SOURCES)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; `clinical-vlm reader-study make` writes one") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: not as it was written: {getattr(error, 'unquoted', 'no JSON')}") from None


def _serialised(study: Study) -> bytes:
    return (json.dumps(asdict(study), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
