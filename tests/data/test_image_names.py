"""Names of images as tables write them: the one file that fits is found and said, two that fit are both named."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.cells import first_images
from vlm.config import DataConfig, TableConfig
from vlm.data.images.find import ImageFolder
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.errors import UserError

FILES = ["scan.png", "Case 7.PNG", "sub/Deep/x.jpg", "1.2.840.10008.dcm", "1.2.840.10009.dcm", "image.tif", "Größe.png",
         "two.png", "two.jpg", "Both.png", "both.png", "images/inner.png", "notes.txt", "archive.tar.gz", "été.bmp",
         "straße.png", "İ.png", "whole/a.png", "whole.png", " lead.png"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("names") / "images"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"something")
    return root


FOUND = {
    "scan.png": ["scan.png", " scan.png ", "scan", "SCAN", "Scan.PNG", "scan.Png", "'scan.png'", '"scan.png"',
                 "“scan.png”", "./scan.png", ".\\scan.png", "images/scan.png", "images\\scan.png", "Images/SCAN",
                 "IMAGES\\scan", "'scan'", "%73can.png", "scan.png.", "names0/images/scan.png", "sub/../SCAN.png"],
    "Case 7.PNG": ["Case 7.PNG", "case 7.png", "case 7", " Case 7 ", "CASE 7.Png", "Case%207.png", "Case 7.PNG.",
                   "\ufeffcase 7.png", "images/Case%207"],
    "sub/Deep/x.jpg": ["sub/Deep/x.jpg", "sub\\Deep\\x.jpg", "SUB/deep/X", "sub//Deep//x", "images/sub/deep/x.JPG",
                       ".\\sub\\deep\\x.jpg"],
    "1.2.840.10008.dcm": ["1.2.840.10008", "1.2.840.10008.DCM", "1.2.840.10008.dcm"],
    "whole.png": ["whole", "WHOLE"],
    "image.tif": ["image", "IMAGE.TIF"],
    "Größe.png": [unicodedata.normalize("NFD", "Größe.png"), unicodedata.normalize("NFD", "GRÖßE"), "grösse.PNG"],
    "été.bmp": [unicodedata.normalize("NFD", "été"), "ÉTÉ.bmp", unicodedata.normalize("NFD", "ÉTÉ.BMP")],
    "straße.png": ["STRASSE.png", "strasse", "straße"],
    "two.jpg": ["two.jpg", "TWO.JPG", "two.Jpg"],
    "both.png": ["both.png"],
    "images/inner.png": ["images/inner.png", "images\\INNER", "images/images/inner"],
    "archive.tar.gz": ["archive.tar.gz", "ARCHIVE.TAR.GZ"],
    " lead.png": ["lead.png", "lead"],
}  # fmt: skip


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in FOUND.items() for name in names])
def test_the_file_that_a_name_means_is_found(file: str, name: str, folder: Path) -> None:
    images = ImageFolder(folder)
    path, note = images.find_with_note(name.replace("names0", folder.parent.name))
    assert os.path.relpath(path, os.path.realpath(folder)) == file
    exact = os.path.normpath(name.strip()) == file
    assert bool(note) != exact and (exact or file in note)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [("two", "two.jpg", "two.png"), ("BOTH.PNG", "Both.png", "both.png"), ("both", "Both.png", "both.png"),
     ("images\\two", "two.jpg", "two.png")],
)  # fmt: skip
def test_a_name_that_may_be_two_files_is_refused_with_both(name: str, first: str, second: str, folder: Path) -> None:
    with pytest.raises(UserError, match=f"may be {first} or {second}") as caught:
        ImageFolder(folder).find(name)
    assert "write the whole name" in str(caught.value)


@pytest.mark.parametrize("name", ["scan.jpg", "notes", "archive", "1.2.840.1000", "scan.png.png", "sca", "x.jpg",
                                  "deep/x", "", "Case7.png", "sub", "sub/Deep"])  # fmt: skip
def test_a_name_that_only_resembles_a_file_is_none(name: str, folder: Path) -> None:
    with pytest.raises(UserError, match=r"no image file|not a regular file"):
        ImageFolder(folder).find(name or "''")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(4):
        picture = np.arange(1200, dtype=np.uint8).reshape(30, 40) * (number + 1)
        Image.fromarray(picture).save(tmp_path / "images" / f"Case-{number}.png")
    names = ["Case-0.png", "case-1.PNG", "images\\Case-2.png", "case-3"]
    pd.DataFrame({"image": names, "glucose": [5, 6, 7, 8]}).to_csv(tmp_path / "cases.csv", index=False)
    return tmp_path / "cases.csv"


def test_training_and_checking_say_once_how_names_were_found(table: Path) -> None:
    described = TableConfig(file="cases.csv", image="image", images="images", vitals=["glucose"])
    cohort = load_cohort(DataConfig(source="table", root=str(table.parent), table=described))
    assert [Path(cell["path"]).name for cell in first_images(cohort.dataset)] == [f"Case-{n}.png" for n in range(4)]
    said = [warning for warning in cohort.warnings if "image names" in warning]
    assert len(said) == 1 and "3 image names are not written as their files are" in said[0]
    assert said[0].endswith("the first: 'case-1.PNG' is Case-1.png")
    result = check_table(table, CheckOptions(table.parent / "images", {"image": "image"}))
    (notice,) = [notice for notice in result.notices if notice.check == "image_names"]
    assert notice.message.startswith(f"{table.parent / 'images'}: 3 image names") and "Case" not in notice.message
    assert len(result.pictures) == 4 and not [notice for notice in result.notices if notice.level == "error"]


@pytest.mark.parametrize("cell", [{"bytes": b"\x89PNG", "path": None}, b"\x89PNG\r\n", {}, []])
def test_images_inside_a_table_are_refused_without_their_bytes(cell: object, folder: Path) -> None:
    from vlm.data.cohort import image_paths
    from vlm.data.images.store import ImageStore

    cells = pd.Series(["scan.png", cell], name="image", dtype=object)
    with pytest.raises(UserError, match="t: row 3: column image holds images, not names of files") as caught:
        image_paths(cells, ImageFolder(folder), "t", ImageStore())
    assert "PNG" not in str(caught.value)
