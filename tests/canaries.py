"""A table whose every text and header is a canary, and where they are found."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.dicom_files import CANARY as DICOM_CANARY
from tests.dicom_files import write
from vlm.config import Config, SectionConfig

CANARY = "Kanarienvogel"


@pytest.fixture
def ward(tiny_config: Config, tmp_path: Path) -> Config:
    """A table whose every text is a canary, on radiographs whose every element is one, and PNGs with texts."""
    root = tmp_path / "ward"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["case,patient,image,glucose,blood_pressure,sex,pathology,effusion,findings,split,indication,remark"]
    for number in range(24):
        pixels = rng.integers(0, 4096, (40, 40), dtype=np.uint16)
        name = f"{CANARY}-file-{number}.{'dcm' if number % 2 else 'png'}"
        if number % 2:
            write(root / "images" / name, pixels, PatientComments=CANARY, StudyDescription=CANARY, StationName=CANARY)
        else:
            texts = PngInfo()
            texts.add_text("Description", CANARY)
            texts.add_text("Comment", CANARY, zip=True)
            Image.fromarray((pixels >> 4).astype(np.uint8)).save(root / "images" / name, pnginfo=texts)
        glucose = "999" if number == 5 else f"{5 + number / 4}"  # one is implausible, and is warned of
        split = ("train", "test", "validation", "train")[number % 4]
        lines.append(
            f"{CANARY}-case-{number},{CANARY}-patient-{number},{name},{glucose},{120 + number}/{70 + number},"
            f"{'MF'[number % 2]},{number // 2 % 2},{number // 3 % 2},No opacity. {CANARY} report {number}.,{split},"
            f"{CANARY} indication,{CANARY} remark"
        )
    (root / "cases.csv").write_text("\n".join(lines) + "\n")
    sections = [SectionConfig("findings", ["image"], "No image was available.")]
    table = replace(tiny_config.data.table, context="indication", report=sections)
    return replace(tiny_config, data=replace(tiny_config.data, root=str(root), table=table))


def canaries_in(file: Path) -> bool:
    """Whether one stands in a file as it is, or in a text of a PNG, packed or not."""
    texts = [file.read_bytes()]
    if file.suffix == ".png":
        with Image.open(file) as picture:
            texts.append(json.dumps({str(key): str(value) for key, value in picture.info.items()}).encode())
    return any(word.encode() in text for text in texts for word in (CANARY, DICOM_CANARY))
