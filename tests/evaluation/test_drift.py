"""The drafts of two times: distances by hand, and nothing of a patient on the page."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlm.cli import main
from vlm.errors import UserError
from vlm.evaluation.drift import compare_drafts, drift, lines

CANARY = "Mrs Canary of Canary Lane"


def write(file: Path, ages: list[float | None], sexes: str, opaque: int, faults: int = 0) -> Path:
    """A file of drafts: the first `opaque` of them with an opacity, and lines of unreadable rows at the end."""
    rows = []
    for n, (age, sex) in enumerate(zip(ages, sexes, strict=True)):
        vitals = {"sex": sex} | ({} if age is None else {"age": age})
        text = f"{'Opacity in the left lung.' if n < opaque else 'No opacity.'} {CANARY}."
        rows.append({"row": n + 2, "id": CANARY, "text": text, "probabilities": {"edema": n / len(sexes)},
                     "vitals": vitals, "finished": True})  # fmt: skip
    rows += [{"row": 999, "id": CANARY, "error": CANARY}] * faults
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_one_example_by_hand(tmp_path: Path) -> None:
    """Ages of 0 to 39 and 20 to 59: half of the later ones are above all others, so the distance is 1/2."""
    before = write(tmp_path / "a.jsonl", [float(n) for n in range(40)], "FM" * 20, 10)
    after = write(tmp_path / "b.jsonl", [float(n) for n in range(20, 60)], "FFFM" * 10, 30)
    found = {row["name"]: row for row in drift(before, after, "chest_en", tmp_path / "out")["quantities"]}
    assert found["vitals: age"]["distance"]["value"] == pytest.approx(0.5) and found["vitals: age"]["drifted"]
    assert found["vitals: age"]["later_is"] == "median 39.5" and found["vitals: age"]["p"] < 1e-3
    p, q = np.array([20.5, 20.5]) / 41, np.array([30.5, 10.5]) / 41
    assert found["vitals: sex"]["distance"]["value"] == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert found["vitals: sex"]["later_is"] == "F 0.750, M 0.250"
    p, q = np.array([30.5, 10.5]) / 41, np.array([10.5, 30.5]) / 41
    opacity = found["findings: opacity"]
    assert opacity["distance"]["value"] == pytest.approx(((q - p) * np.log(q / p)).sum()) and opacity["drifted"]
    assert found["probabilities: edema"]["distance"]["value"] == 0 and not found["probabilities: edema"]["drifted"]
    assert "findings: nodule" not in found, "nobody has one"


def test_the_page_and_the_file_hold_no_word_of_a_draft(tmp_path: Path, capsys) -> None:
    before = write(tmp_path / "a.jsonl", [float(n) for n in range(40)], "FM" * 20, 10)
    after = write(tmp_path / "b.jsonl", [None] * 20 + [5.0] * 20, "FM" * 20, 10, faults=20)
    main(["drift", str(before), str(after), "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "40 drafts before, 60 later" in said and "! vitals: age, missing: PSI" in said
    found = json.loads((tmp_path / "out" / "drift.json").read_text())["quantities"]
    lacking = next(row for row in found if row["name"] == "vitals: age, missing")
    assert (lacking["reference"], lacking["later"], lacking["later_is"]) == (40, 40, "True 0.500"), "not of faults"
    assert "! faults: row that could not be read: PSI" in said
    text = "".join((tmp_path / "out" / name).read_text() for name in ("drift.json", "drift.html")) + said
    assert "Canary" not in text and "not compared: 40 and 20 drafts have it; 30 of each are needed" in text
    with pytest.raises(UserError, match="not empty"):
        drift(before, after, "chest_en", tmp_path / "out")


def test_chance_alone_raises_few_alarms() -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(40):
        before, after = ({f"vitals: {k}": rng.normal(size=200).tolist() for k in range(20)} for _ in range(2))
        alarms += any(row["drifted"] for row in compare_drafts(before, after))
    assert alarms <= 5
    same = {"vitals: a": [1.0] * 40}
    assert lines({"reference": 40, "later": 40, "quantities": compare_drafts(same, same)})[1] == "  no drift seen"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no draft"),
        ("{}\n", "line 1: no draft; give a file that `clinical-vlm draft --input` wrote"),
        ('{"text": 3, "vitals": {}, "probabilities": {}}\n', "line 1: no draft"),
        (f'{{"text": "{CANARY}\n', "not the drafts of a table: Invalid JSON"),
        ('{"text": "", "vitals": {"a": NaN}, "probabilities": {}}\n', "not the drafts of a table: NaN is no number"),
    ],
)
def test_a_file_that_is_none_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.jsonl", [1.0] * 30, "F" * 30, 0), tmp_path / "b.jsonl"
    bad.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        drift(good, bad, "chest_en", tmp_path / "out")
    assert "\n" not in str(error.value) and "Canary" not in str(error.value) and not (tmp_path / "out").exists()
