"""Patients' words stay at home: canaries in every cell, file name and DICOM element reach no log and no artefact.

`predictions.jsonl` and `report.html` hold them on purpose, and are no part of the adapter.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.data.test_dicom import CANARY as DICOM_CANARY
from tests.data.test_dicom import write
from vlm.adapter import FILES
from vlm.config import Config, SectionConfig
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.inference.command import draft_table
from vlm.inference.many import TableColumns, TableJob
from vlm.training.run import train
from vlm.training.run_folder import RunFolder

CANARY = "Kanarienvogel"
AT_HOME = {"predictions.jsonl", "report.html"}
"""What README says holds patients' words."""


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


def test_no_canary_leaves_through_a_run(ward: Config, capfd, monkeypatch) -> None:
    drawn: list[str] = []
    set_text = Text.set_text
    monkeypatch.setattr("matplotlib.text.Text.set_text", lambda self, s: drawn.append(str(s)) or set_text(self, s))
    train(ward)
    said = "".join(capfd.readouterr())
    assert "glucose" in said and "row 7" in said, "the warning names its row"
    assert CANARY not in said and DICOM_CANARY not in said
    run = RunFolder(ward)
    files = [file for file in run.path.rglob("*") if file.is_file()]
    kinds = {file.suffix for file in files}
    assert {".safetensors", ".png", ".jsonl", ".yaml", ".json", ".md", ".html"} <= kinds
    assert {file.name for file in files if canaries_in(file)} == AT_HOME, "a search that finds nothing proves nothing"
    assert {file.name for file in run.adapter.iterdir()} == set(FILES) and not AT_HOME & set(FILES)
    assert len(drawn) > 50 and not any(CANARY in text for text in drawn)
    pictures = list(run.figures.glob("*.png"))
    assert pictures and all(Image.open(file).info.keys() <= {"dpi", "Software"} for file in pictures)


def test_drafting_a_table_prints_nothing_of_it(ward: Config, tiny_model, tmp_path: Path, capfd) -> None:
    from vlm.adapter import save

    folder, root = save(tiny_model, tmp_path / "adapter"), Path(ward.data.root)
    table = root / "cases.csv"
    table.write_text(table.read_text().replace("120/70", f"{CANARY}-pressure"))
    columns = TableColumns(id="case", context="indication")
    job = TableJob(table, tmp_path / "reports.jsonl", root / "images", columns, 8, 4)
    counts = draft_table(str(folder), job, None, False)
    assert counts.lines == 24 and counts.errors == 1
    assert CANARY not in "".join(capfd.readouterr())
    stamp = job.metadata_file.read_text()
    assert CANARY not in stamp and CANARY in job.output.read_text()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("5.25", "5x25", ["row 3", "glucose", "x25"]),
        ("121/71", "121", ["row 3", "blood_pressure", "121"]),
        (",F,0,0,", ",F,7,0,", ["row 3", "pathology", "7"]),
        (f"{CANARY}-patient-1,", ",", ["row 3", "patient"]),
    ],
)
def test_an_error_names_the_row_and_no_other_cell_of_it(old: str, new: str, named: list[str], ward: Config) -> None:
    table = Path(ward.data.root) / "cases.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError) as error:
        load_cohort(ward.data)
    said = str(error.value)
    assert all(word in said for word in named) and CANARY not in said, said
