"""A stranger's image: bounded time and memory in this process, and a worker that can be killed for the server."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.picture_files import empty_png, many_scans, png_chunk, saved, tiff
from vlm.config import DataConfig, TableConfig
from vlm.data.images.find import ImageFolder
from vlm.data.images.image import ImageSpec, decode_image, to_square
from vlm.data.images.sandbox import DecodeLimits, ImageDecoder
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.data.prepare.pack import PackOptions, pack
from vlm.data.vitals.catalog import resolve_vitals
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.inference import many
from vlm.inference.many import TableJob

GREY = cv2.resize(np.random.default_rng(3).integers(0, 256, (6, 5), dtype=np.uint8), (50, 60))


def refused(data: bytes, within: float = 3.0) -> str:
    """Why an image is refused, which must be known at once: in seconds of work, however busy the machine is."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        decode_image(data, "case")
    assert time.process_time() - start < within
    said = str(caught.value)
    assert said.startswith("case: ") and "\n" not in said
    return said


# ------------------------------------------------------------------------- bombs, before they are decoded


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once_and_one_of_ten_is_read() -> None:
    assert "a JPEG of 3,000 scans would take too long" in refused(many_scans(400, 300, 3000))
    assert decode_image(many_scans(400, 300, 10), "case").shape == (300, 400)


def test_the_same_jpeg_inside_a_tiff_or_a_dicom_is_refused(tmp_path) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    from tests.dicom_files import write

    bomb = many_scans(400, 300, 3000)
    strip = tiff(np.frombuffer(bomb, np.uint8)[None], more=[(256, 4, [400]), (257, 4, [300]), (259, 3, [7]),
                                                            (278, 4, [300])])  # fmt: skip
    assert "scans would take too long" in refused(strip)
    pixels = np.zeros((300, 400), np.uint8)
    fine = saved(Image.fromarray(pixels + 90), "JPEG")
    for frame, size in ((bomb, (300, 400)), (fine, (300, 400)), (fine, (30, 40))):
        file = write(tmp_path / "a.dcm", pixels[: size[0], : size[1]], 8)
        from pydicom import dcmread

        dataset = dcmread(file)
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(file)
        if frame is fine and size == (300, 400):
            np.testing.assert_array_equal(decode_image(file.read_bytes(), "case"), 90)
        else:
            assert "too long" in (said := refused(file.read_bytes(), 3)) or "not of the size that it says" in said


@pytest.mark.parametrize("colour", [0, 2, 6])
@pytest.mark.parametrize("interlace", [0, 1])
def test_a_png_that_unpacks_to_hundreds_of_megabytes_is_refused(colour: int, interlace: int) -> None:
    side = {0: 8000, 2: 7000, 6: 6000}[colour]
    said = refused(empty_png(side, side, 16, colour, interlace))
    assert "are more than 50,000,000" in said or "unpacks to" in said


def test_a_run_length_dicom_that_unpacks_without_bound_is_refused(tmp_path) -> None:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import RLELossless

    from tests.dicom_files import write

    file = write(tmp_path / "a.dcm", np.zeros((2000, 2000), np.uint8), 8)
    dataset = dcmread(file)
    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56)
    for size in (4 << 20, 12 << 20):  # of pairs that stand for 128 bytes each: half a gigabyte, and more
        dataset.file_meta.TransferSyntaxUID = RLELossless
        dataset.PixelData = encapsulate([header + b"\x81\0" * (size // 2)])
        dataset["PixelData"].VR = "OB"
        dataset.save_as(file)
        assert "not of the size that it says" in refused(file.read_bytes(), 5)


def test_files_of_endless_small_parts_are_refused_in_bounded_time() -> None:
    chunks = (
        png_chunk(b"IHDR", (9).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])) + png_chunk(b"tEXt", b"") * 1_100_000
    )
    assert "more than 1,000,000 chunks" in refused(b"\x89PNG\r\n\x1a\n" + chunks, 5)
    assert "more than 1,000,000 segments" in refused(b"\xff\xd8" + b"\xff\xfe\0\x02" * 1_100_000, 5)
    picture = saved(Image.fromarray(GREY), "GIF")
    assert "more than 1,000,000 blocks" in refused(picture[: 13 + 768] + b"!\xfe" + b"\x01a" * 1_100_000, 5)
    strips = np.zeros((1, 1_200_000), np.uint32)
    many = tiff(strips, more=[(273, 4, [8] * 1_100_000), (279, 4, [0] * 1_100_000)])
    assert "header is broken" in refused(many, 5)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_texts_and_profiles_that_unpack_to_megabytes_are_not_unpacked(kind: bytes) -> None:
    for image in (Image.fromarray(GREY), Image.fromarray(GREY).convert("RGB").quantize(9)):
        whole = saved(image, "PNG")
        between = {b"iTXt": b"k\0\1\0\0\0"}.get(kind, b"k\0\0") + zlib.compress(bytes(7_900_000), 9)
        bomb = whole[:33] + png_chunk(kind, between) * 200 + whole[33:]
        start = time.process_time()
        np.testing.assert_array_equal(decode_image(bomb, "x"), decode_image(whole, "x"))
        assert time.process_time() - start < 6, "each takes a tenth of a second to unpack"


def test_strips_that_lie_upon_each_other_are_refused() -> None:
    page = np.zeros((1000, 1000), np.uint8)
    over = tiff(page, more=[(273, 4, [8] * 1000), (278, 4, [1]), (279, 4, [page.nbytes] * 1000)])
    assert "lie upon each other" in refused(over)


# ----------------------------------------------------------------------------- a worker that can be killed


@pytest.fixture
def decoder() -> Iterator[ImageDecoder]:
    with ImageDecoder(DecodeLimits(seconds=5, memory=256 << 20, pixels=1_000_000)) as decoder:
        yield decoder


def worker_of(decoder: ImageDecoder) -> int:
    return decoder._idle[0]._process.pid


def test_a_worker_gives_the_pixels_that_this_process_would_read(decoder: ImageDecoder) -> None:
    deep = GREY.astype(np.uint16) * 200
    for data in (saved(Image.fromarray(GREY), "PNG"), saved(Image.fromarray(GREY), "JPEG"), tiff(deep)):
        np.testing.assert_array_equal(decoder.decode(data, "x"), decode_image(data, "x"))
        spec = ImageSpec(32, mean=0.4)
        square = decoder.decode_square(data, "x", spec)
        np.testing.assert_array_equal(square.pixels, to_square(decode_image(data, "x"), spec))
    for bad in (b"", b"<html>no</html>", saved(Image.fromarray(GREY), "PNG")[:-9]):
        with pytest.raises(UserError) as here:
            decode_image(bad, "image")
        with pytest.raises(UserError) as there:
            decoder.decode(bad, "image")
        assert str(here.value) == str(there.value)


def test_limits_of_pixels_and_memory(decoder: ImageDecoder) -> None:
    with pytest.raises(UserError, match=r"big: larger than 1,000,000 pixels"):
        decoder.decode(empty_png(1200, 1000, 8, 0), "big")
    with pytest.raises(UserError, match=r"huge: .*memory"):
        decoder.decode(empty_png(7000, 7000, 8, 2), "huge")
    assert decoder.decode(saved(Image.fromarray(GREY), "PNG"), "x").shape == GREY.shape


def test_an_image_that_takes_too_long_is_given_up_and_the_next_is_read(decoder: ImageDecoder) -> None:
    picture = saved(Image.fromarray(GREY), "PNG")
    decoder.decode(picture, "x")
    first = worker_of(decoder)
    os.kill(first, signal.SIGSTOP)  # as a decoder that never ends
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"slow: not a readable image: it takes longer than 5 seconds to decode"):
        decoder.decode(picture, "slow")
    assert 4 < time.perf_counter() - start < 20
    np.testing.assert_array_equal(decoder.decode(picture, "x"), GREY)
    assert worker_of(decoder) != first and not os.path.exists(f"/proc/{first}")


def test_a_worker_that_dies_costs_its_own_image_alone(decoder: ImageDecoder) -> None:
    picture = saved(Image.fromarray(GREY), "PNG")
    decoder.decode(picture, "x")
    os.kill(worker_of(decoder), signal.SIGSTOP)
    threading.Timer(0.5, os.kill, (worker_of(decoder), signal.SIGKILL)).start()
    with pytest.raises(UserError, match=r"died: not a readable image: the process that decodes it died"):
        decoder.decode(picture, "died")
    np.testing.assert_array_equal(decoder.decode(picture, "x"), GREY)
    os.kill(worker_of(decoder), signal.SIGKILL)
    decoder._idle[0]._process.wait()
    np.testing.assert_array_equal(decoder.decode(picture, "killed while idle"), GREY)


def test_threads_share_the_workers() -> None:
    pictures = [np.full((20, 30), value, np.uint8) for value in range(40)]
    with ImageDecoder(workers=2) as decoder:
        found: dict[int, bool] = {}

        def read(number: int) -> None:
            data = saved(Image.fromarray(pictures[number]), "PNG")
            found[number] = bool((decoder.decode(data, "x") == number).all())

        threads = [threading.Thread(target=read, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == dict.fromkeys(range(40), True) and len(decoder._idle) <= 2
        workers = [worker._process.pid for worker in decoder._idle]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


def test_the_worker_knows_no_secret_and_imports_no_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-the-parent")
    with ImageDecoder() as decoder:
        decoder.decode(saved(Image.fromarray(GREY), "PNG"), "x")
        with open(f"/proc/{worker_of(decoder)}/environ", "rb") as file:
            assert b"secret-of-the-parent" not in file.read()
    script = (
        "import sys, vlm.data.images.sandbox; print(sorted({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------- names that lead out of the folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images, beside which lies what no table may name."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "../secret.png"):
        (folder / name).write_bytes(saved(Image.fromarray(GREY), "PNG"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "c.png").write_bytes(saved(Image.fromarray(GREY), "PNG"))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "relative.png").symlink_to("../secret.png")
    (folder / "hop.png").symlink_to("link.png")
    (folder / "away").symlink_to(tmp_path / "outside")
    (folder / "inside.png").symlink_to("sub/b.png")
    (folder / "near").symlink_to("sub")
    (folder / "nowhere.png").symlink_to("none.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    return folder


OUTSIDE = ["../secret.png", "sub/../../secret.png", "/etc/passwd", "//server/share/x.png", "\\\\server\\share\\x.png",
           "C:\\x.png", "c:x.png", "..\\secret.png", "sub\\..\\..\\secret.png", "file:///etc/passwd", "http://host/x.png",
           "s3://bucket/x.png", "FILE:x.png", "'../secret.png'", '"/etc/passwd"', "./../secret.png", "..",
           "images/../../secret.png", "\\etc\\passwd", "data:image/png;base64,AAAA"]  # fmt: skip
LINKS = ["link.png", "relative.png", "hop.png", "away/c.png", "LINK.png", "away\\C.PNG"]
NO_FILES = ["none.png", "sub", ".", "~/x.png", "~root/x.png", "nowhere.png", "loop.png", "pipe.png", "a.png/x",
            "a\0.png", "x" * 5000, "\ud800.png", "''", "../images"]  # fmt: skip


@pytest.mark.parametrize("name", [*OUTSIDE, *LINKS, *NO_FILES])
def test_no_name_of_a_table_leads_out_of_the_folder(name: str, pictures: Path) -> None:
    message = (
        "leads outside"
        if name in OUTSIDE + LINKS
        else "no image file|is no image file|not a regular file|leads outside"
    )
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(pictures).find(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


WITHIN = ["a.png", "sub/b.png", "sub/../a.png", "./a.png", "inside.png", "near/b.png", "sub//b.png", "{folder}/a.png",
          "away/../a.png"]  # fmt: skip


@pytest.mark.parametrize("name", WITHIN)
def test_names_and_links_within_the_folder_are_found_as_written(name: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(pictures)
    for folder in (pictures, tmp_path / "alias"):
        images = ImageFolder(folder)
        path = images.find(name.format(folder=folder))
        assert os.path.realpath(path).startswith(f"{pictures}/") and os.path.isfile(path) and not images.notes()


def test_a_name_with_line_breaks_or_escapes_stays_one_plain_line(pictures: Path) -> None:
    (pictures / "b\nerror: forged.png").write_bytes(b"")
    images = ImageFolder(pictures)
    for name in ("no\nerror: all is well", "no\x1b[2J", "../\x1b]0;x\x07", "no\u202egnp.exe"):
        with pytest.raises(UserError) as caught:
            images.find(name)
        assert str(caught.value).isprintable()
    images.find("B\nerror: forged.PNG")
    assert images.notes() and all(note.isprintable() for note in images.notes())


def one_column(root: Path, names: list[str]) -> Path:
    table = root / "cases.csv"
    table.write_text("image,glucose\n" + "".join(f'"{name}",{5 + i}\n' for i, name in enumerate(names)))
    return table


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "link.png", "away/c.png", "..\\secret.png"])
def test_training_drafting_checking_and_packing_refuse_alike(name: str, pictures: Path, tmp_path: Path) -> None:
    table, rule = one_column(tmp_path, ["a.png", name]), r"leads outside .*images"
    described = TableConfig(file="cases.csv", image="image", images="images", vitals=["glucose"])
    data = DataConfig(source="table", root=str(tmp_path), table=described)
    with pytest.raises(UserError, match=rf"cases\.csv: row 3: image .*{rule}"):
        load_cohort(data)
    with pytest.raises(UserError, match=rule):
        pack(data, tmp_path / "pack", PackOptions())
    notices = check_table(table, CheckOptions(pictures, {"image": "image"})).notices
    assert [notice.rows for notice in notices if re.search(rule, notice.message)] == [(3,)]
    job = TableJob(table, tmp_path / "out.jsonl", pictures)
    row = next(row for row in job.rows(VitalsSchema(resolve_vitals(["glucose"]))) if row.number == 3)
    prepared = many._prepare(None, row, job.image_folder)  # type: ignore[arg-type]
    assert re.search(rule, prepared.error)
