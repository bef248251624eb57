"""The modality that a DICOM file names: read as an untrusted code, and collected from the training pictures."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.dicom_files import write
from tests.picture_files import saved
from tests.tables import table_of
from vlm.config import DataConfig
from vlm.data.images.dicom import DEFLATED
from vlm.data.images.image import ImageSpec
from vlm.data.images.modality import HEAD, check_modalities, is_modality, read_modality
from vlm.data.images.sandbox import ImageDecoder
from vlm.data.images.square import decode_square
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.pack import PackOptions, pack
from vlm.data.training_modalities import SAMPLE, find_modalities
from vlm.errors import UserError

HOSTILE = ("\x1b[31mCT", "<b>CT</b>", "C\nT", "CT\\MR", "CT CR", "\x9b31mCT", "A" * 17, "A" * 4000, "")


def named(path: Path, modality: str | None, **options: object) -> Path:
    """A DICOM file of this modality, whatever it is."""
    elements = {} if modality is None else {"Modality": modality}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are against the standard
        return write(path, **elements, **options)


@pytest.mark.parametrize(("written", "read"), [("CT", "CT"), ("mr", "MR"), (" DX", "DX"), ("A_9", "A_9"), (None, "")])
def test_a_code_is_read_from_the_whole_file_or_its_beginning(written: str, read: str, tmp_path: Path) -> None:
    data = named(tmp_path / "a", written).read_bytes()
    assert read_modality(data) == read_modality(data[132:]) == read_modality(data + bytes(HEAD)) == read
    assert read_modality(data[:-50]) == read, "cut within the pixels"


@pytest.mark.parametrize("written", HOSTILE)
def test_what_is_no_code_is_not_kept(written: str, tmp_path: Path) -> None:
    assert read_modality(named(tmp_path / "a", written).read_bytes()) == ""
    assert not is_modality(written)


@pytest.mark.parametrize("code", ["CT\u202e", "\u0421T", "\u0661", "CT\n", None, 7, ["CT"]])
def test_what_no_file_should_give_is_no_code(code: object) -> None:
    assert not is_modality(code)


def test_other_files_and_broken_ones_have_none(tmp_path: Path) -> None:
    whole = bytearray(named(tmp_path / "a", "CT").read_bytes())
    assert read_modality(b"") == read_modality(bytes(500)) == ""
    assert read_modality(named(tmp_path / "b", "CT", syntax=DEFLATED).read_bytes()) == ""
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = whole.copy()
        for place in rng.integers(132, len(whole), 8):
            changed[place] = rng.integers(256)
        code = read_modality(bytes(changed[: rng.integers(100, len(changed))]))
        assert code == "" or is_modality(code)


def test_a_square_tells_it_here_and_from_the_worker(tmp_path: Path) -> None:
    from PIL import Image

    png = saved(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), "PNG")
    files = {"CT": named(tmp_path / "a", "CT").read_bytes(), "": named(tmp_path / "b", HOSTILE[0]).read_bytes()}
    with ImageDecoder() as decoder:
        for code, data in [*files.items(), ("", png)]:
            assert decode_square(data, "a", ImageSpec(32)).modality == code
            assert decoder.decode_square(data, "a", ImageSpec(32)).modality == code


@pytest.mark.parametrize(
    "wrong", [("CT", "CR"), ("CR", "CR"), ("ct",), ("\x1b[31m",), ("",), tuple("ABCDEFGHIJKLMNOPQ")]
)
def test_a_list_that_is_not_as_kept_is_refused_in_one_clean_line(wrong: tuple[str, ...]) -> None:
    check_modalities(("CR", "CT", "DX"))
    with pytest.raises(UserError, match=r"^modalities: ") as error:
        check_modalities(wrong)
    assert str(error.value).isprintable()


def table(folder: Path, modalities: list[str | None]) -> DataConfig:
    """Cases to train on with a DICOM picture each and one without, and a CT of the test split."""
    lines = ["id,image,age,edema,report,split"]
    for number, modality in enumerate([*modalities, "CT"]):
        pixels = np.random.default_rng(number).integers(0, 4096, (8, 8), dtype=np.uint16)
        named(folder / f"{number}.dcm", modality, pixels=pixels)
        lines.append(f"{number},{number}.dcm,{40 + number},{number % 2},A report.,train")
    lines[-1] = lines[-1].replace("train", "test")
    data = table_of(folder, "\n".join([*lines, "none,,40,1,A report.,train"]), split="split")
    return replace(data, table=replace(data.table, image="image"))


def test_the_modalities_of_the_training_pictures_are_found(tmp_path: Path) -> None:
    found = find_modalities(load_cohort(table(tmp_path, ["DX", "CR", None, "DX", HOSTILE[0]])))
    said = "named in the DICOM headers of 3 of 5 training pictures looked at"
    assert found == (("CR", "DX"), said), "none of the test split"
    many = [f"M{number:02}" for number in range(17)]
    value, reason = find_modalities(load_cohort(table(tmp_path, many)))
    assert value == () and reason.startswith("17 are named") and reason.endswith("at most 16 are kept")
    assert find_modalities(load_cohort(table(tmp_path, many[:16]))).value == tuple(many[:16])


def test_no_more_than_a_sample_of_headers_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table(tmp_path, ["CR"])
    text = (tmp_path / "t.csv").read_text().splitlines()
    rows = [f"r{number},0.dcm,40,{number % 2},A report.,train" for number in range(SAMPLE + 50)]
    (tmp_path / "t.csv").write_text("\n".join([*text, *rows]))
    cohort = load_cohort(data)
    assert f"{SAMPLE} of {SAMPLE} training pictures" in find_modalities(cohort).reason
    monkeypatch.setattr("vlm.data.training_modalities.SECONDS", -1.0)
    assert find_modalities(cohort) == (("CR",), "named in the DICOM headers of 1 of 1 training pictures looked at")


@pytest.mark.parametrize(("side", "known"), [(0, ("CR", "DX")), (32, ())])
def test_a_pack_of_the_files_keeps_them_and_one_of_pixels_does_not(
    side: int, known: tuple[str, ...], tmp_path: Path
) -> None:
    data = table(tmp_path, ["DX", "CR"])
    pack(data, tmp_path / "shards", PackOptions(image_side=side))
    packed = replace(data, source="packed", root=str(tmp_path / "shards"))
    assert find_modalities(load_cohort(packed)).value == known
