"""Damage to a sealed folder: bits, cuts, zeros, files lost, swapped or lengthened; every one must be refused by name.

`campaign` takes any folder that `vlm.atomic` sealed, and whatever loads it.
"""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vlm.atomic import MANIFEST
from vlm.errors import UserError


def flip_bit(data: bytearray, rng: np.random.Generator) -> bytearray:
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return data


def zero(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = int(rng.integers(len(data)))
    length = min(int(rng.integers(1, 5000)), len(data) - start)
    data[start : start + length] = bytes(length)
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def lengthen(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data + rng.bytes(int(rng.integers(1, 100)))


def shift(data: bytearray, rng: np.random.Generator) -> bytearray:
    """The same length with a byte moved from one place to another."""
    start, end = sorted(rng.integers(len(data), size=2))
    data.insert(end, data.pop(start))
    return data


def edit(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A digit, or in a file without one a byte, is another: what a person's hand would change in JSON."""
    digits = [place for place, value in enumerate(data[:100_000]) if chr(value).isdigit()]
    place = int(rng.choice(digits)) if digits else int(rng.integers(len(data)))
    data[place] = ord("0") + (data[place] - ord("0") + int(rng.integers(1, 10))) % 10
    return data


CONTENT = (flip_bit, zero, cut, lengthen, shift, edit)


def damage(folder: Path, other: Path, rng: np.random.Generator) -> tuple[str, str] | None:
    """Damage one file of a folder; returns its name and the kind of damage, None if it happens to be none."""
    file = sorted(folder.iterdir())[rng.integers(len(list(folder.iterdir())))]
    before = file.read_bytes()
    kind = rng.integers(len(CONTENT) + 2)
    if kind == len(CONTENT):
        file.unlink()
        return file.name, "deleted"
    if kind > len(CONTENT):
        shutil.copyfile(other / file.name, file)
        name = "swapped"
    else:
        file.write_bytes(CONTENT[kind](bytearray(before), rng))
        name = CONTENT[kind].__name__
    return None if file.read_bytes() == before else (file.name, name)


def campaign(
    folder: Path, other: Path, work: Path, load: Callable[[Path], object], count: int, seed: int = 0
) -> Counter[str]:
    """Damage copies of `folder` `count` times, with `other` as the source of swapped files, and load each.

    Counts the kinds of damage tried. Fails where a damaged folder loads, or its error is not one line that names the
    damaged file; of a manifest that is another folder's, the first file that differs is named.
    """
    rng, tried = np.random.default_rng(seed), Counter[str]()
    copy = work / folder.name
    while tried.total() < count:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        done = damage(copy, other, rng)
        if done is None:
            continue
        tried[done[1]] += 1
        try:
            load(copy)
        except UserError as error:
            named = done[0] in str(error) or done == (MANIFEST, "swapped")
            assert named and "\n" not in str(error), f"{done}: {error}"
        else:
            raise AssertionError(f"{done}: loaded silently")
    return tried
