"""Patients' words stay at home: canaries in every cell, file name and DICOM element reach no log and no artefact.

`predictions.jsonl`, `table1.csv` and `report.html` hold them on purpose, and are no part of the adapter.
"""

from pathlib import Path

import pytest
from matplotlib.text import Text
from PIL import Image

from tests.canaries import CANARY, canaries_in, ward
from tests.dicom_files import CANARY as DICOM_CANARY
from vlm.adapter import FILES
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.inference.command import draft_table
from vlm.inference.many import TableColumns, TableJob
from vlm.training.run import train
from vlm.training.run_folder import RunFolder

__all__ = ["ward"]  # fixtures

AT_HOME = {"predictions.jsonl", "report.html", "table1.csv"}
"""What README says holds patients' words."""


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
