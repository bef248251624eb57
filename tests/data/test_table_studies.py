"""Studies in a user's own table: further images, views, rows of one study, and earlier studies by their dates."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.forks import PROJECT
from vlm.config import DataConfig, SectionConfig, StudyImageConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.table import load_table
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.errors import UserError


def pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 255, (12, 10), dtype=np.uint8)
        cv2.imwrite(str(folder / name), pixels)


def table_of(folder: Path, text: str, **options: Any) -> DataConfig:
    """A table with the pictures that its cells name."""
    (folder / "t.csv").write_text(text)
    words = text.replace(",", " ").replace(";", " ").replace('"', " ").split()
    pictures(folder, *(word for word in dict.fromkeys(words) if word.endswith(".png")))
    return DataConfig(source="table", root=str(folder), table=TableConfig(**{"file": "t.csv", **options}))


def images_of(cohort: Cohort) -> dict[str, list[tuple[str, str, bool, float]]]:
    """Id → name, view, prior and days of each image."""
    return {
        row["id"]: [(Path(x["path"]).name, x["view"], x["prior"], x["days"]) for x in row["images"]]
        for row in cohort.dataset
    }


STUDIES = """image,study,who,taken,view,findings,age
a1.png,s1,p1,2020-01-01,PA,Clear.,50
b1.png,s2,p2,20200105,ap,Old scar.,60
a1l.png,s1,p1,2020-01-01,LATERAL,,
a2.png,s2b,p1,2020-01-31,PA,New opacity.,
b2.png,s3,p2,,PA,Unchanged.,61
a3.png,s4,p1,2020-02-10T12:00:00,AP,Resolved.,51
"""
KEYS: dict[str, Any] = {"study": "study", "patient": "who", "time": "taken", "priors": 1, "view": "view",
                        "vitals": ["age"], "report": [SectionConfig("findings")]}  # fmt: skip


def test_rows_of_one_study_become_one_case_and_earlier_studies_its_priors(tmp_path: Path) -> None:
    cohort = load_table(table_of(tmp_path, STUDIES, **KEYS))
    found = images_of(cohort)
    assert list(found) == ["s1", "s2", "s2b", "s3", "s4"]
    assert found["s1"] == [("a1.png", "PA", False, 0), ("a1l.png", "lateral", False, 0)]
    assert found["s2b"] == [("a2.png", "PA", False, 0), ("a1.png", "PA", True, 30), ("a1l.png", "lateral", True, 30)]
    assert found["s4"] == [("a3.png", "AP", False, 0), ("a2.png", "PA", True, 10.5)], "the last one alone"
    assert found["s3"] == [("b2.png", "PA", False, 0)], "without a date nothing is earlier"
    rows = {row["id"]: row for row in cohort.dataset}
    assert rows["s1"]["sections"] == ["Clear."] and rows["s1"]["vitals"] == [50] and rows["s1"]["prior_report"] == ""
    assert rows["s2b"]["prior_report"] == "Clear." and math.isnan(rows["s2b"]["vitals"][0])
    said = "; ".join(cohort.warnings)
    assert "2 of 5 cases show an earlier study" in said and "1 cases have no time" in said


def test_as_many_earlier_studies_as_asked(tmp_path: Path) -> None:
    data = table_of(tmp_path, STUDIES, **{**KEYS, "priors": 2})
    assert [name for name, *_ in images_of(load_table(data))["s4"]] == ["a3.png", "a2.png", "a1.png", "a1l.png"]
    none = load_table(replace(data, table=replace(data.table, priors=0)))
    assert not any(prior for images in images_of(none).values() for _, _, prior, _ in images)
    assert {row["prior_report"] for row in none.dataset} == {""}


@pytest.mark.parametrize("seed", range(3))
def test_no_prior_is_of_the_future_of_another_patient_or_of_another_split(seed: int, tmp_path: Path) -> None:
    """Against a plain search over random dates, equal ones and missing ones among them."""
    rng = np.random.default_rng(seed)
    studies = [(f"s{i}", f"p{rng.integers(6)}", rng.choice([*range(9), ""])) for i in range(60)]
    rows = [f"x.png,{s},{p},{day},Report of {s}" for s, p, day in studies]
    data = table_of(tmp_path, "image,study,who,day,text\n" + "\n".join(rows), study="study", patient="who", time="day",
                    time_unit="d", priors=1, report=[SectionConfig("text")])  # fmt: skip
    cohort = load_table(data)
    day = {s: float(d) if d else math.nan for s, _, d in studies}
    who = {s: p for s, p, _ in studies}
    split = {row["id"]: row["split"] for row in cohort.dataset}
    assert len(set(split.values())) > 1
    for row in cohort.dataset:
        own = row["id"]
        before = [s for s in day if who[s] == who[own] and day[s] < day[own]]
        if not before:
            assert row["prior_report"] == ""
            continue
        other = row["prior_report"].removeprefix("Report of ")
        assert other in before and split[other] == split[own] and day[other] == max(day[s] for s in before)


def test_studies_are_ordered_by_number_where_their_times_are_not_known(tmp_path: Path) -> None:
    text = "image,who,study,visit\nb.png,p,s2,2\nc.png,p,s10,10\na.png,p,s1,1\n"
    data = table_of(tmp_path, text, patient="who", study="study", order="visit", priors=1)
    found = images_of(load_table(data))
    assert [x[0] for x in found["s10"]] == ["c.png", "b.png"] and math.isnan(found["s10"][1][3])
    with pytest.raises(UserError, match="row 2: visit: 'second' is no number of a study"):
        load_table(table_of(tmp_path, text.replace("s2,2", "s2,second"), **vars(data.table)))
    with pytest.raises(UserError, match="row 2: visit: one study has several numbers"):
        load_table(table_of(tmp_path, text.replace("s10", "s2"), **vars(data.table)))


def test_an_event_that_studies_share_orders_them(tmp_path: Path) -> None:
    """The admission was on the day of the first study, and 3 days before the second."""
    text = "image,who,admission\nb.png,p,-3\na.png,p,0\n"
    found = images_of(load_table(table_of(tmp_path, text, patient="who", origin="admission", time_unit="d", priors=1)))
    assert found["row-2"] == [("b.png", "", False, 0), ("a.png", "", True, 3)] and len(found["row-3"]) == 1


def test_further_columns_have_roles(tmp_path: Path) -> None:
    text = ("image,side,before,ago,old\na.png,b.png;c.png,d.png,30,Scar.\na.png,NA,d.png,,\n,,,,x\n")  # fmt: skip
    more = [StudyImageConfig("side", view="LL"), StudyImageConfig("before", view="pa", prior=True, days="ago")]
    data = table_of(tmp_path, text, study_images=more, image_separator=";", prior_report="old")
    cohort = load_table(data)
    first, second, third = images_of(cohort).values()
    assert first == [("a.png", "", False, 0), ("b.png", "lateral", False, 0), ("c.png", "lateral", False, 0),
                     ("d.png", "PA", True, 30)]  # fmt: skip
    assert [name for name, *_ in second] == ["a.png", "d.png"] and math.isnan(second[1][3]) and third == []
    assert cohort.dataset["prior_report"] == ["Scar.", "", "x"]


def test_a_list_in_json_names_several_images(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    lines = [{"image": ["a.png", "b.png"], "view": ["PA", "LL"]}, {"image": [], "view": None}, {"image": "a.png"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = DataConfig(source="table", root=str(tmp_path), table=TableConfig(file="t.jsonl", view="view"))
    assert [[x[:2] for x in images] for images in images_of(load_table(data)).values()] == [
        [("a.png", "PA"), ("b.png", "lateral")], [], [("a.png", "")]]  # fmt: skip
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": [1, 2], "view": ""}))
    with pytest.raises(UserError, match="row 1: column image holds images, not names"):
        load_table(data)


def test_a_list_in_parquet_names_several_images(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png", "c.png")
    frame = pd.DataFrame(
        {"image": [["a.png", "b.png"], None, [], ["c.png"]], "view": [["PA", None], None, ["AP"], ["AP"]]}
    )
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=2)
    data = DataConfig(source="table", root=str(tmp_path), table=TableConfig(file="t.parquet", view="view"))
    assert [[x[:2] for x in images] for images in images_of(load_table(data)).values()] == [
        [("a.png", "PA"), ("b.png", "")], [], [], [("c.png", "AP")]]  # fmt: skip
    with pytest.raises(UserError, match="row 2: view: a list is no text"):
        load_table(replace(data, table=TableConfig(file="t.parquet", context="view")))


@pytest.mark.parametrize("rows", [20_000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_rows_are_joined_in_little_memory(rows: int, tmp_path: Path) -> None:
    """Rows of a study, and the studies of a patient, lie far apart in the table."""
    pictures(tmp_path, "a.png")
    script = f"""
import re, threading, time
from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.ingest.table import load_table
peak = [0]
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10
def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.01)
with open("t.csv", "w") as file:
    file.write("image,study,who,day,text\\n")
    for row in range({rows}):
        study = row * 7919 % {rows} // 2
        file.write(f"a.png,s{{study}},p{{study // 4}},{{study % 4}},{{'Report of ' + str(study) * 40}}\\n")
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
table = TableConfig(file="t.csv", study="study", patient="who", time="day", time_unit="d", priors=1,
                    report=[SectionConfig("text")])
cases = load_table(DataConfig(source="table", root=".", table=table)).dataset
print(len(cases), sum(len(some) for some in cases["prior_report"]) > {rows}, peak[0] - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(PROJECT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    count, has_reports, grown = done.stdout.split()
    assert int(count) == rows // 2 and has_reports == "True" and int(grown) < 150


def test_images_twice_and_too_many_are_counted(tmp_path: Path) -> None:
    names = ";".join(f"{place}.png" for place in range(40))
    data = table_of(tmp_path, f"image\na.png;b.png;a.png\n{names}\n", image_separator=";")
    cohort = load_table(data)
    first, second = images_of(cohort).values()
    assert [name for name, *_ in first] == ["a.png", "b.png"] and len(second) == 32
    said = "; ".join(cohort.warnings)
    assert "1 images stood twice" in said and "1 cases have more images than data.max_images, 5" in said
    assert "1 cases had more than 32 images" in said


def test_a_prior_that_is_the_current_image_is_left_out(tmp_path: Path) -> None:
    data = table_of(tmp_path, "old,image\na.png,a.png\n", study_images=[StudyImageConfig("old", prior=True)])
    assert images_of(load_table(data))["row-2"] == [("a.png", "", False, 0)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("a1l.png,s1,p1", "a1l.png,s1,p2"), "row 4: patient differs from row 2, of the same study 's1'"),
        (("a1l.png,s1,p1,2020-01-01,LATERAL,,", "a1l.png,s1,p1,2020-01-01,LATERAL,Scar.,49"), "2 faults: row 4: age"),
        (("20200105", "05/01/2020"), "row 3: taken: '05/01/2020' is no time"),
        (("20200105", "2020-13-05"), "row 3: taken: '2020-13-05' is no time"),
        (("20200105", "17"), "row 3: taken: the time '17' has no unit"),
        (("20200105", "2020-01-05T10:00:00Z"), "row 3: taken: a time with a zone, but "),
        (("s2b,p1,2020-01-31", "s2b,p1,1820-01-31"), "row 2: taken: 73019 days are more than 40,000"),
        (("2020-01-01,PA", "2020-01-03,PA"), "row 2: taken: the images of its study are 2 days apart"),
        (("LATERAL", "PA; AP"), "row 4: view: 'PA; AP' is no view"),
        (("LATERAL", "prior"), "row 4: view: prior says when an image was taken"),
        (("b1.png,s2", "b1.png,"), "row 3: study is empty"),
        (("b1.png,s2", "b1.png,NA"), "row 3: study 'NA' names no study"),
    ],
)
def test_a_mistake_in_a_study_names_its_row(edit: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert edit[0] in STUDIES
    with pytest.raises(UserError) as error:
        load_table(table_of(tmp_path, STUDIES.replace(*edit, 1), **KEYS))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_patient_in_two_splits_is_refused_before_a_prior_crosses_them(tmp_path: Path) -> None:
    text = "image,who,day,split\na.png,p,1,train\nb.png,p,2,test\n"
    with pytest.raises(UserError, match="1 patients are in two splits"):
        load_table(table_of(tmp_path, text, patient="who", time="day", time_unit="d", priors=1, split="split"))


def test_a_prior_dated_after_is_refused(tmp_path: Path) -> None:
    more = [StudyImageConfig("old", prior=True, days="ago")]
    text = "image,old,ago\na.png,b.png,-3\na.png,b.png,soon\n"
    with pytest.raises(UserError) as error:
        load_table(table_of(tmp_path, text, study_images=more))
    assert "row 2: ago: -3 days before the study is after it" in str(error.value)
    assert "row 3: ago: 'soon' is no number of days" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"study_images": [StudyImageConfig("b", view="PA", view_column="v")]}, "give view, one for all, or view_col"),
        ({"study_images": [StudyImageConfig("b", days="n")]}, "days are those of an earlier study; set prior: true"),
        ({"study_images": [StudyImageConfig("b", view="prior")]}, "b: view: prior says when"),
        ({"image": None, "view": "v"}, "data.table.view: is the view of data.table.image"),
        ({"image_separator": "-"}, "data.table.image_separator: '-' may be part of a name"),
        ({"image_separator": ""}, "data.table.image_separator: '' may be part of a name"),
        ({"study": "a", "id": "b"}, "data.table.id: the id of the study, a, is that of the case"),
        (
            {"priors": 1, "patient": "p"},
            "data.table.priors: earlier studies are found by the columns",
        ),
        ({"priors": 1, "time": "p"}, "data.table.priors: earlier studies are found by the columns"),
        ({"order": "a", "time": "b"}, "data.table.order: is for studies without time or origin"),
        ({"priors": 32}, "data.table.priors: 0 to 31, not 32"),
        ({"priors": -1}, "data.table.priors: 0 to 31, not -1"),
        ({"study_images": [StudyImageConfig("none")]}, "no column none; the table has image, text"),
    ],
)
def test_options_that_contradict_each_other_say_so(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_table(table_of(tmp_path, "image,text\na.png,x\n", **options))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_section_may_need_a_view_that_occurs(tmp_path: Path) -> None:
    def load(need: str) -> Cohort:
        return load_table(table_of(tmp_path, "image,v,text\na.png,Lateral,x\n", view="v",
                                   report=[SectionConfig("text", [need])]))  # fmt: skip

    assert load("lateral").sections[0].needs == ["lateral"]
    with pytest.raises(UserError, match=r"oblique is no vital, and none of image, .*, lateral, of which"):
        load("oblique")


def test_copies_are_found_among_all_images_of_a_study(tmp_path: Path) -> None:
    """A lateral and a prior that are the pictures of another split, and one picture twice in its own row."""
    pytest.importorskip("imagehash")
    data = table_of(tmp_path, "patient,image,side,old,split\np1,a.png,b.png;c.png,,train\np2,d.png,e.png,f.png,test\n"
                              "p3,g.png,h.png,c2.png,test\np4,k.png,k.png,,train\n")  # fmt: skip
    (tmp_path / "c2.png").write_bytes((tmp_path / "c.png").read_bytes())
    options = CheckOptions(tmp_path, further_images=["side", "old"], image_separator=";")
    result = check_table(tmp_path / data.table.file, options)
    assert [(pair.first, pair.second) for pair in result.pairs] == [(0, 2)]
    (leak,) = (notice for notice in result.notices if notice.check == "image_leak")
    assert leak.level == "error" and "rows 2 and 4" in leak.message
