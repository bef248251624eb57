"""Check the images: missing, unreadable, blank and duplicate."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import ImageFolder
from vlm.data.images.image import ImageSpec, decode_image, is_blank, read_file, to_square
from vlm.data.images.store import EmbeddedReader, row_label
from vlm.data.prepare.notice import Notice, counted, row_pairs
from vlm.errors import UserError
from vlm.progress import progress

THUMB = 48
NEAR_BITS = 12
"""Largest Hamming distance of two 64-bit perceptual hashes for a pair to be compared by thumbnail."""
SMALLEST_ROUGH = 0.8
"""Smallest correlation of two unaligned thumbnails for a closer comparison; all chests look somewhat alike."""
SAME_IMAGE = 0.97
"""Correlation of two aligned thumbnails above which they are one image."""
SCALES = np.arange(0.92, 1.085, 0.01)
BLOCK = 2048


@dataclass(frozen=True)
class Picture:
    """Digest, perceptual hash and thumbnail of an image; its full pixels are not kept."""

    row: int
    digest: str
    """SHA-256 of the file."""
    bits: int
    """64-bit perceptual hash (pHash)."""
    thumb: np.ndarray
    """48 × 48 uint8."""
    blank: bool


@dataclass(frozen=True)
class Pair:
    """Two rows with the same image."""

    first: int
    second: int
    exact: bool


def read_pictures(
    names: Sequence[tuple[int, str | EmbeddedImage]], images: ImageFolder | None
) -> tuple[list[Picture], dict[int, str]]:
    """Read images given as row (from 0) and file name or embedded image, several a row or not.

    Returns them, and row → reason for the first image of it that was not read.
    """
    pictures, broken, embedded = [], dict[int, str](), EmbeddedReader()
    with ThreadPoolExecutor(4) as pool:
        jobs = pool.map(lambda item: _read(item[0], item[1], images, embedded), names)
        shown = progress(jobs, "images", len(names))
        for (row, _), result in zip(names, shown, strict=True):
            if isinstance(result, Picture):
                pictures.append(result)
            else:
                broken.setdefault(row, result)
    return pictures, broken


def _read(row: int, name: str | EmbeddedImage, images: ImageFolder | None, embedded: EmbeddedReader) -> Picture | str:
    path = ""
    try:
        if isinstance(name, EmbeddedImage):
            path = row_label(name, f"row {row + 2}")
            data = embedded.read(name, path)
        elif images is not None:
            path = images.find(name)
            data = read_file(Path(path))
        square = to_square(decode_image(data, path), ImageSpec(size=256))
    except UserError as error:
        return "no such file" if str(error).startswith("no image file") else str(error).removeprefix(f"{path}: ")
    return describe(square, row, hashlib.sha256(data).hexdigest())


def describe(square: np.ndarray, row: int, digest: str = "") -> Picture:
    """Compute hash and thumbnail of a square grey image, S × S uint8."""
    import imagehash  # optional: only the search for copies needs it

    bits = int(str(imagehash.phash(Image.fromarray(square))), 16)
    thumb = cv2.resize(square, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
    return Picture(row, digest, bits, thumb, is_blank(square))


def find_pairs(pictures: list[Picture]) -> list[Pair]:
    """Find exact copies by digest, near copies by hash and then by the correlation of their thumbnails.

    Every pair of 64-bit hashes is compared: some seconds for 100,000 images, far less than reading them.
    """
    by_digest: dict[str, list[int]] = defaultdict(list)
    for picture in pictures:
        if picture.digest:
            by_digest[picture.digest].append(picture.row)
    exact = {(rows[0], other) for rows in by_digest.values() for other in rows[1:] if other != rows[0]}
    seen = [picture for picture in pictures if not picture.blank]
    near = {pair for pair in _near(seen) if pair not in exact}
    near = {(a, b) for a, b in near if not any({(c, a), (c, b)} <= exact for c in (a, b))}
    return sorted(
        [Pair(a, b, True) for a, b in exact] + [Pair(a, b, False) for a, b in near], key=lambda p: (p.first, p.second)
    )


def _near(pictures: list[Picture]) -> set[tuple[int, int]]:
    if not pictures:
        return set()
    bits = np.array([picture.bits for picture in pictures], dtype=np.uint64)
    thumbs = np.stack([picture.thumb for picture in pictures]).reshape(len(pictures), -1).astype(np.float32)
    thumbs -= thumbs.mean(axis=1, keepdims=True)
    thumbs /= np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-6)
    pairs = set()
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        distance = np.bitwise_count(block[:, None] ^ bits[None, start:])  # block × the rest
        for i, j in zip(*np.nonzero(distance <= NEAR_BITS), strict=True):
            if (
                i < j
                and pictures[start + i].row != pictures[start + j].row
                and thumbs[start + i] @ thumbs[start + j] >= SMALLEST_ROUGH
            ):
                first, second = pictures[start + i], pictures[start + j]
                if similarity(first.thumb, second.thumb) >= SAME_IMAGE:
                    pairs.add((first.row, second.row))
    return pairs


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the highest correlation of one thumbnail's centre with a part of the other, at nearly the same scale.

    A cropped copy is slightly scaled and shifted, so it no longer correlates unaligned.
    """
    margin = THUMB // 8
    middle = first[margin:-margin, margin:-margin]
    best = -1.0
    for scale in SCALES:
        side = round(len(middle) * scale)
        template = cv2.resize(middle, (side, side), interpolation=cv2.INTER_LINEAR)
        best = max(best, float(cv2.matchTemplate(second, template, cv2.TM_CCOEFF_NORMED).max()))
    return best


def check_pictures(pictures: list[Picture], broken: dict[int, str], pairs: list[Pair],
                   patients: np.ndarray, note: str = "") -> list[Notice]:  # fmt: skip
    """Report missing, unreadable, blank and copied images, within and across patients; `note`: how names were found."""
    notices = []
    kinds: dict[str, list[int]] = defaultdict(list)
    for row, reason in broken.items():
        kinds["no such file" if reason == "no such file" else "unreadable"].append(row)
    for kind, lost in kinds.items():
        example = broken[lost[0]]
        reason = "" if kind == example else f", the first: {example}"
        message = f"{counted(len(lost), 'image')}: {kind}{reason}"
        notices.append(Notice("error", kind.replace(" ", "_"), message, tuple(row + 2 for row in lost[:5])))
    if note:
        notices.append(Notice("note", "image_names", note))
    blank = [picture.row for picture in pictures if picture.blank]
    if blank:
        message = f"{counted(len(blank), 'image')} of one grey value: taken as no image"
        notices.append(Notice("warning", "blank", message, tuple(row + 2 for row in blank[:5])))
    for exact, word in ((True, "the same file"), (False, "nearly the same picture")):
        some = [pair for pair in pairs if pair.exact == exact]
        other = [pair for pair in some if patients[pair.first] != patients[pair.second]]
        for chosen, whose, level in ((other, "different patients", "warning"),
                                     ([p for p in some if p not in other], "one patient", "note")):  # fmt: skip
            if chosen:
                rows = row_pairs((pair.first, pair.second) for pair in chosen)
                message = f"{counted(len(chosen), 'pair')} of rows of {whose} show {word}: rows {rows}"
                notices.append(Notice(level, "copies" if exact else "near_copies", message))  # type: ignore[arg-type]
    return notices
