"""The check reads a table as training does, and both say what cannot be learned from it."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.fhir_bundles import PATIENT
from tests.forks import Forks
from tests.tables import HEAD, NAN, table_of
from vlm.config import DataConfig, SectionConfig, TableConfig, VitalConfig
from vlm.data.ingest.read import TableOptions, read_table, reading_notes
from vlm.data.ingest.sources import load_cohort
from vlm.data.ingest.table import load_table
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.data.prepare.columns import find_roles, missing
from vlm.data.prepare.row_checks import read_numbers
from vlm.data.vitals.catalog import CATALOG, resolve_vitals
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.values import is_missing, read_value
from vlm.errors import UserError
from vlm.inference.fhir import from_fhir

# ------------------------------------------------------------------------------------- nothing to learn, said at load


SUBSTANCE = [
    ("".join(f"c{n},p{n},{50 + n},{n % 2},,{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "no report in 4 training cases: the text cannot be learned"),
    ("".join(f"c{n},p{n},{50 + n},{n % 2},Normal.,{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "one and the same report in all 4 training cases that have one"),
    ("".join(f"c{n},p{n},{50 + n},1,r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "label edema is the same in all 4 training cases that have it, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},{50 + n},unknown,r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "label edema is unknown in all 4 training cases, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},,{n % 2},r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "vital age is unknown in all 4 training cases, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},50,{n % 2},r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "vital age is the same in all 4 training cases that have it, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},{50 + n},{n % 2},r{n},train\n" for n in range(4)),
     "every case is in the split train, none in validation or test"),
    ("".join(f"c{n},p{n},{50 + n},{n % 2},r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["test"])),
     "no case is in the split validation"),
    ("c0,p0,50,1,same,train\nc1,p0,50,1,same,train\nc2,p2,60,0,other,train\nc3,p3,61,0,b,validation\nc4,p4,62,1,c,test\n",
     "1 row repeats an earlier one in all but its id: the same image, values, labels and report"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), SUBSTANCE, ids=[message[:40] for _, message in SUBSTANCE])
def test_what_cannot_be_learned_is_said_by_training_and_check_alike(rows: str, message: str, tmp_path: Path) -> None:
    data = table_of(tmp_path, HEAD + rows, id="id", patient="patient", vitals=["age"], labels=["edema"], split="split",
                    report=[SectionConfig("report", [])])  # fmt: skip
    assert [text for text in load_cohort(data).warnings if not text.startswith(str(tmp_path))] == [message]
    options = CheckOptions(None, {"patient": "patient", "split": "split"}, ["edema"], resolve_vitals(["age"]),
                           reports=["report"])  # fmt: skip
    notices = check_table(tmp_path / "t.csv", options).notices
    assert [notice.message for notice in notices if notice.check == "substance"] == [message]


def test_check_says_what_training_says(tmp_path: Path, forks: Forks) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"{n},{n % 2 if n else 'maybe'},Größe normal - Übersicht,train\n" for n in range(30))
    path.write_bytes(("id,edema,report,split\n" + rows.replace("29,1", "29,-1")).encode("cp1252"))
    table = TableConfig(file="t.csv", image=None, labels=["edema"], report=[SectionConfig("report", [])], split="split")
    with pytest.raises(UserError) as error:
        load_table(DataConfig(source="table", root=str(tmp_path), table=table))
    notices = check_table(path, CheckOptions(None, {"split": "split"}, ["edema"], reports=["report"])).notices
    said = {notice.check: f"{path}: {notice.message}" for notice in notices}
    assert said["unreadable_label"] == str(error.value)
    assert (said["reading"],) == reading_notes(path) and "Windows-1252" in said["reading"]
    done = forks.command("check", str(path), "--encoding", "utf-8", program="vlm.cli")
    assert done.returncode == 2 and "line 2 is not in utf-8, which data.table.encoding" in done.stderr


def test_a_gender_that_the_vital_names_is_given() -> None:
    three = VitalsSchema((VitalConfig("sex", categories=["Female", "Male", "Other"]),))
    assert from_fhir([{**PATIENT, "gender": "other"}], three)[0] == {"sex": "Other"}
    values, notes = from_fhir([{**PATIENT, "gender": "unknown"}], three)
    assert values == {} and notes == ("the Patient's gender is unknown: sex is not given",)


# ---------------------------------------------------------------------- check reads as training reads


def test_check_counts_missing_cells_and_classes_by_the_rule_of_training() -> None:
    cells = ["n.a.", "N. A.", "k. A.", '="NA"', "\u200bNA", "не опр.", "5", None, np.nan, 5.0]
    assert missing(pd.Series(cells, dtype=object)).tolist() == [is_missing(cell) for cell in cells] == [
        *[True] * 6, False, True, True, False]  # fmt: skip
    found = pd.Series(["edema"] * 12 + ["n.a."] * 12 + ["normal"] * 12, dtype=object)
    frame = pd.DataFrame({"patient": [f"p{row}" for row in range(36)], "finding": found})
    labels = find_roles(frame, {}).labels
    assert sorted(labels) == ["edema", "normal"] and np.isnan(labels["edema"][12:24]).all()


@pytest.mark.parametrize(("name", "unit", "cell"), [
    ("sex", "", "1"), ("sex", "", 0.0), ("sex", "", "w"), ("leukocytes", "/µL", "5.000"), ("leukocytes", "/µL", "7200"),
    ("glucose", "mg/dL", "110"), ("glucose", "", "1e3"), ("glucose", "", "６,４"), ("glucose", "", True),
    ("glucose", "", "1_000"), ("glucose", "", "n.a."), ("glucose", "", 6.4), ("age", "", [1])])  # fmt: skip
def test_check_reads_a_vital_as_training_does(name: str, unit: str, cell: Any) -> None:
    values, broken = read_numbers(pd.Series(["", cell, cell], dtype=object), CATALOG[name], unit)
    try:
        np.testing.assert_array_equal(values, [NAN, *[read_value(CATALOG[name], cell, "", unit)] * 2])
        assert broken == {}
    except UserError:
        assert np.isnan(values).all() and sorted(broken) == [1, 2]


def test_a_spreadsheet_and_utf16_that_are_not_read_say_the_way_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.ods", "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
    with pytest.raises(UserError, match=r"an OpenDocument spreadsheet; save it as \.xlsx or CSV"):
        read_table(tmp_path / "t.ods")
    for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        (tmp_path / "t.csv").write_bytes("id,note\n1,ü\n".encode(codec))
        with pytest.raises(UserError, match=rf"set data\.table\.encoding \(--encoding\) to {codec}$"):
            read_table(tmp_path / "t.csv")
        assert read_table(tmp_path / "t.csv", TableOptions(codec))["note"].tolist() == ["ü"], "the way out is one"
