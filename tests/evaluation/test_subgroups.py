"""Groups of the test cases and what the model does in each, by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vlm.adapter.card import card
from vlm.config import Config, VitalConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.evaluation.groupings import Grouping, _of_texts, all_groupings, check_subgroups, quartiles
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.evaluation.scoring import CaseScores
from vlm.evaluation.subgroups import all_measures, subgroup_measures, titles

NAN = float("nan")


def rows_of(groups: dict[str, np.ndarray]) -> dict[str, list[int]]:
    return {name: np.flatnonzero(cases).tolist() for name, cases in groups.items()}


def example(times: int = 1, draws: int = 0) -> dict:
    """Four women and four men, each with a loss, a label, a probability and a draft; `times` over."""
    targets = np.array([1, 0, 1, 0, 1, 0, 1, NAN] * times)
    logits = np.array([2.0, -2, 1, -1, -1, 1, 2, 3] * times)
    losses, tokens = np.array([2.0, 4, 6, 8, 10, 10, 0, 20] * times), np.array([2, 2, 2, 2, 4, 4, 0, 2] * times)
    scores = CaseScores(logits[:, None], targets[:, None], losses, tokens)
    drafts = ["Pleural effusion.", "No effusion.", "Pleural effusion.", "Pleural effusion."] * 2 * times
    references = ["Pleural effusion.", "No effusion.", "Pleural effusion.", "No effusion."] * 2 * times
    men = np.array([False] * 4 + [True] * 4)
    sex = Grouping("sex", {"F": np.tile(~men, times), "M": np.tile(men, times)})
    points = {"effusion": {"sensitivity_0.9": {"threshold": {"value": 0.5}}}}
    measures = all_measures(scores, 1 / (1 + np.exp(-scores.logits)), ["effusion"], points,
                            Reports(drafts, references), {"effusion": "pleural_effusion"})  # fmt: skip
    bootstrap = Bootstrap(np.array([f"p{n}" for n in range(8 * times)], dtype=object), draws)
    return subgroup_measures([sex], measures, bootstrap)["sex"]


def test_one_example_by_hand() -> None:
    found = example()
    women, men = found["groups"]["F"], found["groups"]["M"]
    assert (women["cases"], women["patients"], women["small"], found["unknown"]) == (4, 4, True, 0)
    wanted = {
        "text_loss": (20 / 8, 40 / 10),
        "finding_f1": (2 * 2 / (2 * 2 + 1), 2 * 2 / (2 * 2 + 1)),  # of three drafts with effusion one is wrong
        "labels_right": (2 / 3, 2 / 2),  # named where the table has it; of the men's three one is unknown
        "auroc effusion": (1.0, roc_auc_score([1, 0, 1], [-1, 1, 2])),
        "ece effusion": (None, None),
        "sensitivity effusion": (1.0, 1 / 2),
        "specificity effusion": (1.0, 0.0),
    }
    for place, group in enumerate((women, men)):
        values = {name: group[name]["value"] for name in wanted}
        assert values == pytest.approx({name: pair[place] for name, pair in wanted.items()})
    assert women.keys() == {"cases", "patients", "small", *wanted}
    assert found["gaps"]["text_loss"]["why"] == "0 groups of 20 patients or more have an interval"


def test_the_gap_is_paired_and_the_better_group_is_named() -> None:
    found = example(times=10, draws=300)
    women, men, gaps = found["groups"]["F"], found["groups"]["M"], found["gaps"]
    assert not women["small"] and women["ece effusion"]["value"] > 0
    loss = gaps["text_loss"]
    assert loss["value"] == pytest.approx(4 - 2.5) and (loss["best"], loss["worst"]) == ("F", "M")
    assert loss["low"] < 1.5 < loss["high"] and loss["low"] > 0
    right = gaps["labels_right"]
    assert right["value"] == pytest.approx(1 / 3) and (right["best"], right["worst"]) == ("M", "F")
    assert gaps["sensitivity effusion"]["value"] == pytest.approx(0.5)
    assert gaps["finding_f1"]["value"] == 0 and gaps["finding_f1"]["low"] < 0 < gaps["finding_f1"]["high"]
    assert list(titles({"sex": found}).values()) == [
        "text loss", "finding F1", "named labels right", "AUROC effusion", "ECE effusion", "sensitivity effusion",
        "specificity effusion",
    ]  # fmt: skip
    assert men["text_loss"]["value"] == 4


def test_the_card_has_the_sizes_and_the_gaps_that_leave_0_out(tiny_model) -> None:
    text = card(tiny_model, {"subgroups": {"sex": example(times=10, draws=300)}})
    assert "- sex: F 40 cases of 40 patients; M 40 cases of 40 patients\n" in text
    assert "Of 7 gaps between the best and the worst group, " in text and "| sex | text loss | F | M | 1.500 (" in text
    assert (
        "| sex | finding f1" not in text
        and "| Demographics and subgroups, fairness (CLAIM, TRIPOD-LLM) | sex; above |" in text
    )
    few = card(tiny_model, {"subgroups": {"sex": example()}})
    assert "F 4 cases of 4 patients (small)" in few and "Of 0 gaps" in few
    assert "fairness (CLAIM, TRIPOD-LLM) | open" in card(tiny_model, {})


def with_vitals(config: Config, tmp_path: Path) -> tuple[Config, Cohort]:
    """A table of six cases with sex, age, a device, a view and a glucose that some lack."""
    lines = ["case,patient,age,sex,glucose,device,dose,view,findings"]
    for n, (age, sex, glucose) in enumerate([(39.9, "F", 5), (40, "M", ""), (64.9, "F", 6), (65, "", ""),
                                             ("", "M", 7), (90, "F", 8)]):  # fmt: skip
        lines.append(f"c{n},p{n},{age},{sex},{glucose},{'AB'[n % 2]},{n},{['PA', 'AP'][n > 3]},Clear.")
    (tmp_path / "six.csv").write_text("\n".join(lines) + "\n")
    vitals = ["age", "sex", VitalConfig("glucose", "mmol/L")]
    table = replace(config.data.table, file="six.csv", image=None, split=None, labels=[], vitals=vitals)
    data = replace(config.data, root=str(tmp_path), table=table)
    config = replace(config, data=data)
    return config, load_cohort(config.data)


def grouped(config: Config, cohort: Cohort, *names: str) -> dict[str, Grouping]:
    wanted = list(names) or None
    config = replace(config, evaluation=replace(config.evaluation, subgroups=wanted))
    check_subgroups(config, cohort)
    return {one.name: one for one in all_groupings(config, cohort, cohort.dataset)}


def test_vitals_are_divided_by_category_age_and_quartile(tiny_config: Config, tmp_path: Path) -> None:
    config, cohort = with_vitals(tiny_config, tmp_path)
    found = grouped(config, cohort)
    assert list(found) == ["sex", "age", "missing"], "the default"
    assert rows_of(found["sex"].groups) == {"F": [0, 2, 5], "M": [1, 4]} and found["sex"].unknown == 1
    assert rows_of(found["age"].groups) == {"under 40": [0], "40 to 64": [1, 2], "65 and older": [3, 5]}
    assert rows_of(found["missing"].groups) == {
        "without an image": [0, 1, 2, 3, 4, 5], "without glucose": [1, 3], "without age": [4], "without sex": [3]
    }  # fmt: skip
    named = grouped(config, cohort, "glucose", "device", "source")
    # Quartiles of 5, 6, 7, 8: 5.75, 6.5, 7.25.
    assert rows_of(named["glucose"].groups) == {
        "under 5.75 mmol/L": [0], "5.75 to under 6.5 mmol/L": [2], "6.5 to under 7.25 mmol/L": [4],
        "7.25 or more mmol/L": [5],
    }  # fmt: skip
    assert named["glucose"].unknown == 2 and named["source"].unknown == 6
    assert rows_of(named["device"].groups) == {"other values": [0, 1, 2, 3, 4, 5]}, "three patients each: not named"
    assert grouped(replace(config, evaluation=replace(config.evaluation)), cohort, "Device").keys() == {"Device"}


def test_a_name_that_is_nothing_is_refused_before_the_work(tiny_config: Config, tmp_path: Path) -> None:
    config, cohort = with_vitals(tiny_config, tmp_path)
    with pytest.raises(UserError, match=r"evaluation\.subgroups: .*six\.csv: no column ward; the table has case"):
        grouped(config, cohort, "ward")
    config = replace(config, data=replace(config.data, source="covid_cxr"))
    with pytest.raises(UserError, match=r"evaluation\.subgroups: ward is none of a vital, view, source or missing"):
        grouped(config, cohort, "ward")


def test_columns_of_a_table_name_no_person() -> None:
    """Words of under ten patients are one group; numbers are in quartiles; further words are one group."""
    patients = [f"p{n}" for n in range(40)]
    words = ["A"] * 15 + ["B"] * 12 + ["Dr. Who"] * 3 + [""] * 10
    assert {name: cases.sum() for name, cases in _of_texts(words, patients).items()} == {
        "A": 15, "B": 12, "other values": 3}  # fmt: skip
    one = _of_texts(["A"] * 20 + ["B"] * 20, ["p"] * 20 + patients[:20])
    assert rows_of(one) == {"B": list(range(20, 40)), "other values": list(range(20))}, "patients count, not cases"
    numbers = _of_texts([str(n) for n in range(40)], patients)
    assert list(numbers) == ["under 9.75", "9.75 to under 19.5", "19.5 to under 29.25", "29.25 or more"]
    assert quartiles(np.full(5, 3.0)) == {"all that are known": (-np.inf, np.inf)} == quartiles(np.array([NAN]))
    assert list(quartiles(np.array([0.0, 0, 0, 1]))) == ["under 0.25", "0.25 or more"]
