"""A stranger's image: bounded time and memory in this process, and a worker that can be killed for the server."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.picture_files import empty_png, many_scans, png_chunk, saved, tiff
from vlm.data.decoding import DecodeLimits, ImageDecoder
from vlm.data.images import ImageSpec, decode_image, to_square
from vlm.errors import UserError

GREY = cv2.resize(np.random.default_rng(3).integers(0, 256, (6, 5), dtype=np.uint8), (50, 60))


def refused(data: bytes, within: float = 1.0) -> str:
    """Why an image is refused, which must be known at once."""
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        decode_image(data, "case")
    assert time.perf_counter() - start < within
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

    from tests.test_dicom import write

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

    from tests.test_dicom import write

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
        np.testing.assert_array_equal(decoder.decode_square(data, "x", spec), to_square(decode_image(data, "x"), spec))
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
    assert 4 < time.perf_counter() - start < 8
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
    script = "import sys, vlm.data.decoding; print(sorted({'torch', 'pandas', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
