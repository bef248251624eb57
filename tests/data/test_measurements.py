"""Values over time in tables: one cell, columns with times, one measurement a row, sources and packs."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.tables import table_of
from tests.vitals_over_time import CRP, LDH, rows_of
from vlm.config import DataConfig, MeasurementsConfig, SeriesColumnConfig, SourceConfig, TableConfig, VitalConfig
from vlm.config.parsing import parse_config
from vlm.config.strict import from_dict
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.data.prepare.pack import PackOptions, pack
from vlm.data.vitals.catalog import resolve_vitals
from vlm.errors import UserError


def read(folder: Path, text: str, **changes: Any) -> dict[str, dict[str, float]]:
    return rows_of(load_cohort(table_of(folder, text, **{"id": "id", "vitals": [CRP], **changes})))


# ------------------------------------------------------------------------------------------------ cells and columns


def test_a_cell_holds_a_series(tmp_path: Path) -> None:
    text = 'id,crp\na,12@-2d;30@0h\nb,"[[""-24 h"", 9], [0, ""8 mg/L""]]"\nc,7\nd,\n'
    rows = read(tmp_path, text)
    assert (rows["a"]["crp_change"], rows["a"]["crp_slope"], rows["a"]["crp_count"]) == (18, 9, 2)
    assert rows["b"]["crp_change"] == -1 and rows["c"] == {"crp": 7, "crp_hours_since": 0, "crp_count": 1}
    assert rows["d"] == {}


def test_json_lines_hold_a_series_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": "a", "crp": [["-2 d", 12], [0, 30]]}\n{"id": "b", "crp": null}\n')
    data = table_of(tmp_path, "", id="id", vitals=[CRP])
    rows = rows_of(load_cohort(replace(data, table=replace(data.table, file="t.jsonl"))))
    assert rows["a"]["crp_change"] == 18 and rows["b"] == {}


def test_dates_in_a_cell_are_read_against_the_studys(tmp_path: Path) -> None:
    text = "id,crp,study_time,taken\na,12@2026-03-01T08:00Z;30@2026-03-02T08:00Z,2026-03-02T20:00Z,2026-03-03T08:00Z\n"
    assert read(tmp_path, text)["a"]["crp_hours_since"] == 12
    assert read(tmp_path, text, time="taken")["a"]["crp_hours_since"] == 24


PAIRS = "id,v1,t1,v2,t2,yesterday,ldh\na,12,-3,30,0,20 mg/L,200@-1d;260@0\nb,,-3,4,-1,,\nc,5,,6,-2,,250\n"
COLUMNS = [SeriesColumnConfig("crp", "v1", "t1"), SeriesColumnConfig("crp", "v2", "t2"),
           SeriesColumnConfig("crp", "yesterday", at="-1 d", unit="mg/dL")]  # fmt: skip


def test_pairs_of_columns_and_columns_of_one_time_make_a_series(tmp_path: Path) -> None:
    data = table_of(tmp_path, PAIRS, id="id", vitals=[CRP, LDH], series=COLUMNS, time_unit="d")
    cohort = load_cohort(data)
    rows = rows_of(cohort)
    assert (rows["a"]["crp"], rows["a"]["crp_change"], rows["a"]["crp_count"]) == (30, 18, 3)
    assert rows["a"]["crp_slope"] == pytest.approx(np.polyfit([-3, -1, 0], [12, 20, 30], 1)[0], abs=1e-4)
    assert rows["a"]["ldh_change"] == 60
    assert (rows["b"]["crp"], rows["b"]["crp_hours_since"], rows["b"]["crp_count"]) == (4, 24, 1)
    assert (rows["c"]["crp"], rows["c"]["crp_hours_since"]) == (6, 48)
    assert any("1 values without a time were left out" in line for line in cohort.warnings)


def test_a_number_alone_needs_the_unit_of_times(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 2: t1: the time '-3' has no unit"):
        read(tmp_path, PAIRS, series=COLUMNS, vitals=[CRP, LDH])


def test_values_after_the_study_are_never_read(tmp_path: Path) -> None:
    text = "id,v1,t1\na,12,-3\na2,99,2\n"
    data = table_of(tmp_path, text, id="id", vitals=[CRP], series=COLUMNS[:1], time_unit="d")
    cohort = load_cohort(data)
    assert rows_of(cohort)["a2"] == {} and any("1 values after their study" in line for line in cohort.warnings)
    with pytest.raises(UserError, match=r"row 2: crp: a value 48 h after the study"):
        read(tmp_path, "id,crp\na,12@2d\n")


# ------------------------------------------------------------------------------------------------ one measurement a row


CASES = "id,patient,taken\na,p,2026-03-01T12:00Z\nb,p,2026-03-03T12:00Z\nc,q,2026-03-03T12:00Z\nd,q,\n"
LABS = """id,name,value,unit,time
p,CRP,12,mg/L,2026-03-01T08:00Z
p,c-reactive protein,3,mg/dL,2026-03-03T10:00Z
p,CRP,900000,,2026-03-03T09:00Z
p,sodium,140,,2026-03-03T09:00Z
p,CRP,20,,2026-03-02T12:00+01:00
q,CRP [mg/dL],1,,2026-03-03T12:00Z
q,CRP,,,2026-03-03T12:00Z
z,CRP,1,,2026-03-03T12:00Z
"""


def with_labs(folder: Path, cases: str = CASES, labs: str = LABS, **changes: Any) -> DataConfig:
    (folder / "labs.csv").write_text(labs)
    table = {"id": "id", "patient": "patient", "time": "taken", "series_of": "patient", "vitals": [CRP],
             "measurements": MeasurementsConfig("labs.csv", unit="unit")}  # fmt: skip
    return table_of(folder, cases, **table | changes)


def test_one_measurement_a_row_of_the_patient_up_to_each_study(tmp_path: Path) -> None:
    cohort = load_cohort(with_labs(tmp_path))
    rows = rows_of(cohort)
    assert rows["a"] == {"crp": 12, "crp_hours_since": 4, "crp_count": 1}
    assert (rows["b"]["crp"], rows["b"]["crp_change"], rows["b"]["crp_count"]) == (30, 18, 3)
    assert rows["b"]["crp_hours_since"] == 2 and rows["c"]["crp"] == 10 and rows["d"] == {}
    said = " ".join(cohort.warnings)
    assert "1 measurements are none of the vitals (sodium)" in said and "3 values after their study" in said
    assert "outside" in said and "studies without a time" in said


def test_measurements_of_cases_and_numbers_from_an_origin(tmp_path: Path) -> None:
    labs = "id,name,value,time\na,crp,12,-2 d\na,crp,30,0\nb,crp,5,-1 h\n"
    own = MeasurementsConfig("labs.csv")
    rows = rows_of(load_cohort(with_labs(tmp_path, labs=labs, time=None, series_of="case", measurements=own)))
    assert rows["a"]["crp_change"] == 18 and rows["b"]["crp_hours_since"] == 1 and rows["c"] == {}
    cases, labs = "id,patient,day\na,p,3\nb,p,10\n", "id,name,value,time\np,crp,12,1\np,crp,30,9\n"
    data = with_labs(tmp_path, cases, labs, time="day", time_unit="d", measurements=own)
    rows = rows_of(load_cohort(data))
    assert rows["a"]["crp_hours_since"] == 48 and rows["b"]["crp_change"] == 18 and rows["b"]["crp_hours_since"] == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labs": LABS.replace(",12,mg/L", ",a lot,mg/L")}, r"labs.csv: row 2: value: 'a lot' is not a number"),
        ({"labs": LABS.replace("p,CRP,12,mg/L", "p,CRP,12,stone")}, r"labs.csv: row 2: value: unit stone is none"),
        ({"labs": LABS.replace("2026-03-01T08:00Z", "-2 d")}, r"row 2: time: '-2 d' is before which study\?"),
        ({"labs": LABS.replace("2026-03-01T08:00Z", "2026-03-01 08:00")}, "some times are without a zone"),
        ({"labs": LABS.replace("2026-03-01T08:00Z", "1.3.26")}, r"row 2: time: '1\.3\.26' is no time"),
        ({"labs": LABS.replace("p,", "x,").replace("q,", "y,")}, r"labs.csv: no id is that of a patient"),
        ({"labs": "id,name,value,when\n"}, r"labs.csv: no column time"),
        ({"measurements": MeasurementsConfig("none.csv")}, r"none.csv: no such table"),
        ({"time": None}, r"series_of: patient needs the columns patient, and time or origin"),
        ({"origin": "taken"}, r"time and origin stand in place of each other"),
        ({"time": None, "series_of": "case", "id": None}, r"measurements: needs the column id"),
        ({"vitals": ["crp"]}, r"row 2: crp is one value; declare it with over_time"),
        ({"vitals": ["crp"], "series": [SeriesColumnConfig("crp", "taken", "taken")]}, "crp is one value"),
        ({"series": [SeriesColumnConfig("crp", "taken")]}, r"series: taken: give time, the column of its times"),
        ({"series": [SeriesColumnConfig("ldh", "taken", "taken")]}, r"data.table.series: unknown vital ldh"),
        ({"cases": CASES.replace("2026-03-01T12:00Z", "-3 h")}, r"row 2: taken: the time of a study is a date"),
        ({"cases": "id,patient,taken,crp\na,p,2026-03-01T12:00Z,3\n"}, r"measurements both give crp; drop one"),
        ({"cases": "id,patient,taken,crp_slope\na,p,2026-03-01T12:00Z,3\n"}, "crp_slope is computed from the series"),
    ],
)  # fmt: skip
def test_a_fault_of_measurements_is_one_clear_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_cohort(with_labs(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_other_readers_refuse_what_they_do_not_read(tmp_path: Path) -> None:
    data = with_labs(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,patient,taken\n,p,2026-03-01T12:00Z\n")
    with pytest.raises(UserError, match="series and measurements are read by the source table alone"):
        load_cohort(replace(data, source="image_folder", table=replace(data.table, id=None)))


def test_a_config_file_says_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("""
data:
  table:
    time: taken
    series_of: patient
    vitals: [{ready: crp, over_time: true, steady: 5}]
    series: [{vital: crp, value: v1, time: t1}, {vital: crp, value: v0, at: -24 h}]
    measurements: {file: labs.csv, id: patient, unit: unit}
""")
    table = parse_config(["--config", str(tmp_path / "c.yaml")])[0].data.table
    assert table.series[1] == SeriesColumnConfig("crp", "v0", at="-24 h")
    assert table.measurements == MeasurementsConfig("labs.csv", id="patient", unit="unit")
    assert from_dict(TableConfig, {"series": [{"vital": "crp", "value": "v", "time": "t"}]}, "").series[0].time == "t"


def test_the_check_reads_the_last_value_of_a_series(tmp_path: Path) -> None:
    text = "id,crp\n" + "".join(f"{n},{n + 1}@-1d;{n + 2}@0\n" for n in range(30)) + "x,3@yesterday\ny,1@-1d;9000@0\n"
    (tmp_path / "t.csv").write_text(text)
    result = check_table(tmp_path / "t.csv", CheckOptions(vitals=resolve_vitals([CRP])))
    assert result.numbers["crp"][:3].tolist() == [2, 3, 4] and result.numbers["crp"][31] == 1
    assert [notice.rows for notice in result.notices if notice.check == "unreadable_value"] == [(32,)]


def test_many_rows_are_read_in_time_and_as_a_table_of_each_patient_says(tmp_path: Path) -> None:
    """20,000 studies of 4,000 patients, 60,000 values: a fifth of what a large clinic has, in a fifth of its time."""
    rng = np.random.default_rng(0)
    days = rng.integers(0, 365, 4_000)
    patients = rng.integers(0, 4_000, 20_000)
    cases = pd.DataFrame({"id": np.arange(20_000), "patient": patients, "day": days[patients] + 30})
    of = rng.integers(0, 4_000, 60_000)
    labs = pd.DataFrame({"id": of, "name": "crp", "value": rng.integers(1, 200, 60_000),
                         "time": days[of] + rng.integers(0, 40, 60_000)})  # fmt: skip
    cases.to_parquet(tmp_path / "t.parquet"), labs.to_parquet(tmp_path / "labs.parquet")
    table = TableConfig("t.parquet", image=None, id="id", patient="patient", time="day", time_unit="d",
                        series_of="patient", vitals=[CRP], measurements=MeasurementsConfig("labs.parquet"))  # fmt: skip
    began = time.process_time()
    cohort = load_cohort(DataConfig(source="table", root=str(tmp_path), table=table))
    assert time.process_time() - began < 15
    x = np.array(cohort.dataset[:500]["vitals"])
    for row, (patient, day) in enumerate(zip(patients[:500], cases["day"][:500], strict=True)):
        own = labs[(labs["id"] == patient) & (labs["time"] <= day)].groupby("time")["value"].mean()
        assert (x[row, 4] == len(own)) or (np.isnan(x[row, 4]) and own.empty)
        if len(own) > 1:
            assert x[row, 1] == pytest.approx(own.iloc[-1] - own.iloc[0], abs=1e-3)
            slope = np.polyfit(own.index, own, 1)[0]
            assert x[row, 2] == pytest.approx(slope, rel=1e-3, abs=1e-3)


# ------------------------------------------------------------------------------------------------ sources and packs


def test_two_sources_with_other_units_become_one(tmp_path: Path) -> None:
    """A change and a slope convert by the factor alone: 1 °C more is 1.8 °F more, without the 32."""
    sources = []
    for name, unit, cell in (("a", "°C", "37@-1d;38@0"), ("b", "°F", "98.6@-1d;100.4@0")):
        (tmp_path / name).mkdir()
        vital = VitalConfig(ready="temperature", unit=unit, over_time=True)
        table = table_of(tmp_path / name, f"id,temperature\n1,{cell}\n", id="id", vitals=[vital]).table
        sources.append(SourceConfig("table", str(tmp_path / name), name=name, table=table))
    plain = replace(sources[0], name="c", table=replace(sources[0].table, vitals=["temperature"]))
    (tmp_path / "a" / "p.csv").write_text("id,temperature\n1,39\n")
    plain = replace(plain, table=replace(plain.table, file="p.csv"))
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        cohort = load_cohort(DataConfig(sources=[[*sources, plain][place] for place in order]))
        rows, factor = rows_of(cohort), 1.8 if order[0] == 1 else 1
        assert rows["a/1"]["temperature_change"] == pytest.approx(factor, abs=1e-3) == rows["b/1"]["temperature_change"]
        assert rows["b/1"]["temperature_slope"] == pytest.approx(factor, abs=1e-3)
        assert rows["a/1"]["temperature"] == pytest.approx(rows["b/1"]["temperature"], abs=1e-2)
        assert rows["c/1"].keys() == {"temperature"} and len(cohort.schema.given) == 1


def test_packed_shards_keep_the_features(tmp_path: Path) -> None:
    data = with_labs(tmp_path)
    cohort = load_cohort(data)
    pack(data, tmp_path / "packed", PackOptions())
    again = load_cohort(DataConfig(source="packed", root=str(tmp_path / "packed")))
    assert again.schema == cohort.schema and again.schema.vitals[1].feature == "change"
    assert rows_of(again) == rows_of(cohort)
