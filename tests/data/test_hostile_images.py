"""Mutated files: each becomes a picture or one line that names it, in bounded time and memory; the process lives.

They are read in a process of its own, so that a crash of a native decoder is seen and counted.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, RLELossless

from tests.dicom_files import lut, write
from tests.picture_files import exif, saved, tiff
from vlm.data.images.image import ImageSpec, read_image, to_square
from vlm.errors import UserError

SECONDS, ROOM = 5.0, 1 << 30


def seeds(folder: Path) -> list[bytes]:
    """Whole files of every format and several depths."""
    rng = np.random.default_rng(1)
    grey = cv2.GaussianBlur(rng.integers(0, 256, (96, 80), dtype=np.uint8), (9, 9), 0)
    deep = grey.astype(np.uint16) * 257
    colour = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    real = grey.astype(np.float32) / 255
    pictures = [(".png", grey), (".png", deep), (".png", colour), (".jpg", grey), (".jpg", colour), (".tiff", grey),
                (".tiff", deep), (".tiff", real), (".webp", colour), (".bmp", grey)]  # fmt: skip
    files = [cv2.imencode(suffix, picture)[1].tobytes() for suffix, picture in pictures]
    turned = Image.fromarray(grey)
    files += [saved(turned, "JPEG", progressive=True, exif=exif(6)), saved(turned, "PNG", exif=exif(8)),
              saved(turned.convert("RGB"), "WEBP", exif=exif(3)), saved(turned, "GIF"), saved(turned, "PPM"),
              saved(turned.convert("P"), "TIFF"), tiff(deep, photometric=0, big=True),
              saved(turned.convert("RGBA"), "PNG", save_all=True)]  # fmt: skip
    plain = write(folder / "seed.dcm", deep >> 4, WindowCenter=2000, WindowWidth=3000, PixelPaddingValue=0)
    files.append(plain.read_bytes())
    files.append(write(folder / "lut.dcm", deep >> 4, VOILUTSequence=lut(0, np.arange(4096), 12)).read_bytes())
    files.append(plain.read_bytes()[132:])
    for syntax in (RLELossless, JPEG2000Lossless):
        packed = dcmread(plain)
        packed.compress(syntax)
        packed.save_as(folder / "packed.dcm")
        files.append((folder / "packed.dcm").read_bytes())
    return files


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, cut, repeat, insert or splice; headers more often than pixels."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        where = int(rng.integers(len(out)) if rng.random() < 0.4 else rng.integers(min(len(out), 700)))
        kind = int(rng.integers(7))
        if kind <= 2:
            out[where] = int(rng.integers(256))
        elif kind == 3:
            out[where : where + 4] = int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000])).to_bytes(4, "little")
        elif kind == 4:
            out = out[: max(where, 1)]
        elif kind == 5:
            out[where:where] = out[where : where + int(rng.integers(1, 200))]
        else:
            start = int(rng.integers(len(other)))
            out[where : where + 64] = other[start : start + 64]
    return bytes(out)


def campaign(folder: Path, count: int, seed: int) -> None:
    """Read `count` mutated files and print what became of them, as JSON."""
    files = seeds(folder)
    read_image(get_testdata_file("vlut_04.dcm"))  # the libraries are loaded before the time counts
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (before + ROOM, before + ROOM))
    rng = np.random.default_rng(seed)
    result = {"pictures": 0, "refused": 0, "other": [], "slowest": 0.0}
    for number in range(count):
        first, second = files[number % len(files)], files[int(rng.integers(len(files)))]
        file = folder / "case.bin"
        file.write_bytes(mutate(first, second, rng))
        start = time.process_time()
        try:
            to_square(read_image(file), ImageSpec(size=64))
            result["pictures"] += 1
        except UserError as error:
            result["refused"] += 1
            if "\n" in str(error) or "case.bin" not in str(error):
                result["other"].append(str(error))
        except BaseException as error:
            result["other"].append(f"{number}: {error!r}")
        result["slowest"] = max(result["slowest"], time.process_time() - start)
    print(json.dumps(result))


def run_campaign(folder: Path, count: int, seed: int) -> dict:
    command = [sys.executable, "-m", "tests.data.test_hostile_images", str(folder), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, f"the process died: {done.returncode}, {done.stderr[-500:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    print(result)
    assert result["other"] == [] and result["pictures"] + result["refused"] == count
    assert result["pictures"] > count / 20 and result["refused"] > count / 20
    assert result["slowest"] < SECONDS
    return result


def test_a_sample_of_mutated_files(tmp_path: Path) -> None:
    run_campaign(tmp_path, 420, 0)


@pytest.mark.soak
def test_ten_thousand_mutated_files(tmp_path: Path) -> None:
    for seed in range(1, 11):
        run_campaign(tmp_path, 1000, seed)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(UserError, match=rf"{name}: cannot read the image: it is not a regular file"):
            read_image(tmp_path / name)


def test_a_picture_that_unpacks_to_a_gigabyte_is_refused(tmp_path: Path) -> None:
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    side = 30_000
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes((side + 1) * 1000), 9)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows))
    with pytest.raises(UserError, match=r"bomb\.png: not a readable image"):
        read_image(tmp_path / "bomb.png")


def test_a_tiff_of_several_pages_is_refused_and_deep_ones_are_read(tmp_path: Path) -> None:
    page = np.arange(1600, dtype=np.uint16).reshape(40, 40) * 25
    cv2.imwritemulti(str(tmp_path / "pages.tiff"), [page, page])
    with pytest.raises(UserError, match=r"pages\.tiff: a TIFF of several pages"):
        read_image(tmp_path / "pages.tiff")
    cv2.imwrite(str(tmp_path / "deep.tiff"), page)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.tiff"), page)
    real = page.astype(np.float32) / 7
    real[0, 0], real[1, 1] = np.nan, np.inf
    cv2.imwrite(str(tmp_path / "real.tiff"), real)
    square = to_square(read_image(tmp_path / "real.tiff"), ImageSpec(size=40))
    assert square[0, 0] == square[1, 1] == 0 and square[-1, -1] == 255 and square[20, 20] > 100


if __name__ == "__main__":
    campaign(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
