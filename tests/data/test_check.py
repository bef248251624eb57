"""`vlm.data check`: each check finds what was planted and stays silent where nothing was."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.forks import PROJECT, Forks
from vlm.config import PhantomConfig, SplitConfig
from vlm.data.ingest.phantom import draw_cases
from vlm.data.ingest.phantom_image import draw_chest
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.data.prepare.columns import find_roles
from vlm.data.prepare.leaks import check_leaks, splits_of
from vlm.data.prepare.pictures import Picture, describe, find_pairs
from vlm.data.splits import assign_splits, deviations
from vlm.errors import UserError

NOTES = (
    "patchy shadow of the left lower zone with a blunt costophrenic angle",
    "clear lungs and a heart of normal size",
    "reticular pattern of both upper zones without an effusion",
    "a round nodule beside the right hilum",
)


def clean(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """A table with nothing to say about."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "patient": [f"p{1000 + i}" for i in range(rows)],
        "age": rng.integers(20, 90, rows),
        "glucose": rng.normal(6, 1, rows).round(1),
        "spo2": rng.integers(85, 100, rows),
        "edema": rng.permutation([0, 1] * (rows // 2)),
        "report": [f"Case {rng.integers(1e9)}: {NOTES[i % 4]}." for i in range(rows)],
    }).astype(object)  # fmt: skip


def checks(frame: pd.DataFrame, folder: Path, images: Path | None = None, **columns: str) -> dict[str, list]:
    """Name of the check → its notices above a note."""
    file = folder / "cases.csv"
    frame.to_csv(file, index=False)
    found: dict[str, list] = {}
    for notice in check_table(file, CheckOptions(images, columns)).notices:
        if notice.level != "note":
            found.setdefault(notice.check, []).append(notice)
    return found


def test_a_clean_table_gets_no_warning(tmp_path: Path) -> None:
    assert checks(clean(), tmp_path) == {}


def with_cells(column: str, values: dict[int, object]):
    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        for row, value in values.items():
            frame.loc[row, column] = value
        return frame

    return edit


def missing_by_label(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[frame["edema"] == 1, "glucose"] = ""
    return frame


@pytest.mark.parametrize(
    ("edit", "check", "words"),
    [
        (with_cells("spo2", {3: 175, 5: 130}), "out_of_range", "spo2: 2 values outside 50 to 100 % (130, 175)"),
        (with_cells("glucose", {i: 110 + i for i in range(60)}), "unit", "would be mg/dL: the whole column"),
        (with_cells("glucose", {i: 110 + i for i in range(9)}), "unit", "the column seems to mix units"),
        (with_cells("glucose", {4: "high"}), "unreadable_value", "glucose: 1 cell cannot be read"),
        (with_cells("patient", {4: ""}), "missing_patient", "1 row without a patient"),
        (with_cells("patient", {0: "12", 1: "012", 2: "P12", 3: "12 "}), "aliased_ids", "1 group of patient ids"),
        (missing_by_label, "shortcut", "edema can be told from which vitals are missing alone with an AUROC of 1.00"),
        (lambda f: f.assign(view=np.where(f["edema"] == 1, "AP", "PA")), "shortcut", "from the view (view) alone"),
        (lambda f: f.assign(hospital=np.where(f["edema"] == 1, "a", "b")), "shortcut", "from the source (hospital)"),
        (lambda f: f.assign(license="CC BY-NC-ND 4.0"), "licence", "60 rows under a licence that forbids derivatives"),
        (lambda f: f.assign(license=""), "licence", "60 rows without a stated licence"),
        (lambda f: f.assign(image=[f"edema_{i}.png" if e else f"{i}.png" for i, e in enumerate(f["edema"])]),
         "label_words", "image names edema in 100% of its positive rows and 0% of its negative ones"),
        (lambda f: f.drop(columns="patient"), "rows", "no patient column"),
        (lambda f: f.drop(columns="edema"), "labels", "no label column"),
        (lambda f: f.assign(edema=[1] * 5 + [0] * 55), "labels", "too few to test on"),
    ],
)  # fmt: skip
def test_what_was_planted_is_said(edit, check: str, words: str, tmp_path: Path) -> None:
    found = checks(edit(clean()), tmp_path)
    assert set(found) - {"out_of_range"} <= {check}, found
    assert any(words in notice.message for notice in found[check]), found[check]


def test_rows_are_counted_as_a_spreadsheet_does(tmp_path: Path) -> None:
    (notice,) = checks(with_cells("spo2", {3: 175})(clean()), tmp_path)["out_of_range"]
    assert notice.rows == (5,)


def test_a_column_of_classes_becomes_labels_against_the_rest() -> None:
    frame = clean().drop(columns="edema")
    frame["Finding Labels"] = ["A|B", "No Finding", "todo"] * 20
    roles = find_roles(frame, {})
    assert set(roles.labels) == {"A", "B", "No Finding"}
    np.testing.assert_array_equal(roles.labels["A"][:3], [1, 0, np.nan])


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cases\.csv: no column nobody; the table has patient, age"):
        checks(clean(), tmp_path, patient="nobody")


# ------------------------------------------------------------------------------------------- pictures


def chests(count: int, seed: int = 0) -> list[np.ndarray]:
    """Drawn chests are more alike than any two patients: each gets a face of its own."""
    cases, rng = draw_cases(PhantomConfig(cases=count, seed=seed)), np.random.default_rng(seed)
    pictures = []
    for index, case in cases.iterrows():
        picture, _ = draw_chest(case["finding"], case["side"], case["zone"], np.random.default_rng([seed, index]))
        face = cv2.resize(rng.normal(0, 25, (7, 7)).astype(np.float32), picture.shape[::-1])
        pictures.append(np.clip(picture + face, 0, 255).astype(np.uint8))
    return pictures


def alter(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What happens to a picture on its way through another collection."""
    kind = int(rng.integers(5))
    if kind == 0:
        return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0)
    if kind == 1:
        return cv2.resize(picture, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    if kind == 2:
        return np.clip(picture * rng.uniform(0.85, 1.1) + rng.uniform(-15, 15), 0, 255).astype(np.uint8)
    if kind == 3:
        return (255 * (picture / 255.0) ** rng.uniform(0.8, 1.25)).astype(np.uint8)
    cut = [int(side * rng.uniform(0.002, 0.02)) for side in picture.shape for _ in range(2)]
    return picture[cut[0] : -cut[1] or None, cut[2] : -cut[3] or None]


def square(picture: np.ndarray) -> np.ndarray:
    from vlm.data.images.image import ImageSpec, to_square

    return to_square(picture.astype(np.float32), ImageSpec(size=256))


def found_share(pictures: list[np.ndarray], rng: np.random.Generator) -> tuple[float, int]:
    """Share of planted copies found, and pairs found that were not planted."""
    seen: list[Picture] = [describe(square(p), i) for i, p in enumerate(pictures)]
    seen += [describe(square(alter(p, rng)), 1000 + i) for i, p in enumerate(pictures)]
    pairs = {(pair.first, pair.second) for pair in find_pairs(seen)}
    planted = {(i, 1000 + i) for i in range(len(pictures))}
    return len(planted & pairs) / len(planted), len({(a % 1000, b % 1000) for a, b in pairs - planted})


def test_altered_copies_of_drawn_chests_are_found() -> None:
    share, _ = found_share(chests(60), np.random.default_rng(0))
    assert share >= 0.99


def test_altered_copies_of_real_radiographs_are_found_and_others_are_not(covid_root: Path) -> None:
    from vlm.data.images.image import read_image

    files = sorted((covid_root / "images").glob("*"))[:120]
    rng = np.random.default_rng(0)
    pictures = []
    for file in files:
        raw = read_image(file)
        low, high = np.percentile(raw, [0.5, 99.5])
        pictures.append((np.clip((raw - low) / max(high - low, 1), 0, 1) * 255).astype(np.uint8))
    share, others = found_share(pictures, rng)
    assert share >= 0.99 and others <= 3


def write_images(folder: Path, pictures: list[np.ndarray]) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [f"{index}.png" for index in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        cv2.imwrite(str(folder / name), picture)
    return names


def test_images_lost_broken_blank_and_twice_are_said(tmp_path: Path) -> None:
    frame, images = clean(24), tmp_path / "images"
    frame["image"] = write_images(images, chests(24))
    (images / "0.png").unlink()
    (images / "1.png").write_bytes(b"no image")
    cv2.imwrite(str(images / "2.png"), np.full((50, 50), 9, np.uint8))
    (images / "4.png").write_bytes((images / "3.png").read_bytes())
    found = checks(frame, tmp_path, images)
    assert found["no_such_file"][0].level == found["unreadable"][0].level == "error"
    assert found["no_such_file"][0].rows == (2,) and found["unreadable"][0].rows == (3,)
    assert found["blank"][0].rows == (4,)
    assert "1 pair of rows of different patients show the same file: rows 5 and 6" in found["copies"][0].message


# ---------------------------------------------------------------------------------------------- leaks


def leaky(seed: int, pictures: list[np.ndarray]) -> tuple[pd.DataFrame, list[Picture], set[str]]:
    """A table with a fixed split, and some of a patient, a note and a picture planted on both sides of it."""
    rng = np.random.default_rng(seed)
    frame = clean(40, seed)
    frame["split"] = rng.permutation(["train"] * 24 + ["validation"] * 6 + ["test"] * 10)
    train, test = (np.flatnonzero(frame["split"] == side) for side in ("train", "test"))
    shown = [pictures[i % len(pictures)] for i in rng.permutation(len(pictures))[:40]]
    planted = {kind for kind in ("patient_leak", "note_leak", "image_leak") if rng.random() < 0.5}
    a, b = rng.choice(train, 3, replace=False), rng.choice(test, 3, replace=False)
    if "patient_leak" in planted:
        frame.loc[b[0], "patient"] = frame.loc[a[0], "patient"]
    if "note_leak" in planted:
        frame.loc[b[1], "report"] = f"  {frame.loc[a[1], 'report'].upper().replace(' ', '  ')} "
    if "image_leak" in planted:
        shown[b[2]] = alter(shown[a[2]], rng)
    return frame, [describe(square(picture), row) for row, picture in enumerate(shown)], planted


def missed_and_invented(tables: range, pictures: list[np.ndarray]) -> tuple[int, int]:
    missed = invented = 0
    for seed in tables:
        frame, seen, planted = leaky(seed, pictures)
        roles = find_roles(frame, {})
        patients = frame["patient"].to_numpy(object)
        splits = splits_of(frame, roles, patients, SplitConfig())
        found = {n.check for n in check_leaks(frame, roles, patients, splits, find_pairs(seen)) if n.level == "error"}
        missed, invented = missed + len(planted - found), invented + len(found - planted)
    return missed, invented


def test_no_leak_of_forty_tables_is_missed() -> None:
    assert missed_and_invented(range(40), chests(60)) == (0, 0)


@pytest.mark.soak
def test_no_leak_of_a_thousand_tables_is_missed() -> None:
    missed, invented = missed_and_invented(range(1000), chests(80, 1))
    print(f"missed {missed}, invented {invented}")
    assert missed == 0


def test_a_planned_split_leaks_by_notes_and_pictures_alone(tmp_path: Path) -> None:
    frame = clean(60)
    sides = np.array(assign_splits(frame["patient"].tolist(), SplitConfig()))
    train, test = np.flatnonzero(sides == "train")[0], np.flatnonzero(sides == "test")[0]
    frame.loc[test, "report"] = frame.loc[train, "report"]
    (notice,) = checks(frame, tmp_path)["note_leak"]
    assert notice.level == "warning" and "the planned split by patient" in notice.message


def test_a_seed_is_found_that_divides_the_labels_evenly() -> None:
    patients = np.array([f"p{i}" for i in range(200)], dtype=object)
    labels = {"rare": np.arange(200) < 20}
    config = SplitConfig(0.1, 0.2)
    each = deviations(patients, labels, config, range(25))
    assert min(each) < 0.05 < max(each) and each[7] == deviations(patients, labels, replace(config, seed=7), [7])[0]


# --------------------------------------------------------------------------------- the command itself


def test_exit_codes_json_and_page(tmp_path: Path, forks: Forks) -> None:
    frame = clean(24)
    frame["image"] = write_images(tmp_path / "images", chests(24))
    frame.to_csv(tmp_path / "cases.csv", index=False)
    page, machine = tmp_path / "page.html", tmp_path / "found.json"
    whole = [
        str(tmp_path / "cases.csv"),
        "--images",
        str(tmp_path / "images"),
        "--html",
        str(page),
        "--json",
        str(machine),
    ]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "vlm.cli", "check", *whole]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "24 rows, 24 patients" in done.stdout and "patient: column patient (by its name)" in done.stdout
    found = json.loads(machine.read_text())
    assert found["columns"]["vitals"] == {"age": "age", "glucose": "glucose", "spo2": "spo2"}
    assert {"level", "check", "message", "rows"} == set(found["notices"][0]) and found["worst"] != "error"
    html = page.read_text()
    assert "http" not in html.replace("http-equiv", "") and "<script" not in html and html.count("data:image/png") == 3
    (tmp_path / "images" / "3.png").unlink()
    assert forks.command("check", *whole, program="vlm.cli").returncode == 1
    wrong = forks.command("check", str(tmp_path / "none.csv"), program="vlm.cli")
    assert wrong.returncode == 2 and "none.csv" in wrong.stderr and "Traceback" not in wrong.stderr
    assert all(text not in done.stdout for text in frame["report"])


def test_the_real_collection_is_warned_of(covid_root: Path) -> None:
    result = check_table(covid_root / "metadata.csv", CheckOptions())
    warned = {notice.check: notice.message for notice in result.notices if notice.level == "warning"}
    assert "pO2_saturation: 26 values outside 50 to 100 %" in warned["out_of_range"] and "175" in warned["out_of_range"]
    shortcuts = [n.message for n in result.notices if n.check == "shortcut" and n.level == "warning"]
    assert any("COVID-19 can be told from which cells of any column are empty" in message for message in shortcuts)
