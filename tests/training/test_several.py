"""Several seeds or folds of one config: each run, what is pooled, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm.config import Config, SplitConfig
from vlm.config.parsing import parse_config
from vlm.data.splits import assign_splits
from vlm.errors import UserError
from vlm.evaluation.pooled import pool_runs
from vlm.training.several import runs_of, train_several


@pytest.mark.slow
def test_seeds_are_run_one_after_another_and_pooled(tiny_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(tiny_config, train=replace(tiny_config.train, max_steps=2))
    folder = train_several(config, seeds=2)
    runs = Path(config.run.folder)
    pooled = json.loads((folder / "pooled.json").read_text())
    assert folder == runs / "tiny-pooled" and pooled["runs"] == [str(runs / "tiny-seed0"), str(runs / "tiny-seed1")]
    for name in ("tiny-seed0", "tiny-seed1"):
        assert (runs / name / "adapter" / "config.json").is_file()
    loss = pooled["measures"]["text loss per token"]
    own = [json.loads((runs / f"tiny-seed{n}" / "metrics.json").read_text())["text_loss"]["value"] for n in (0, 1)]
    np.testing.assert_allclose(loss["runs"], own, rtol=1e-5)
    assert own[0] != own[1] and loss["pooled"]["value"] == pytest.approx(np.mean(own), rel=1e-5)
    assert loss["pooled"]["low"] is None, "fewer than ten patients"
    assert "2 runs" in (folder / "pooled.html").read_text()
    before = {file: file.stat().st_mtime_ns for file in runs.glob("tiny-seed*/metrics.json")}
    capsys.readouterr()
    train_several(config, seeds=3, resume=True)
    assert {file: file.stat().st_mtime_ns for file in before} == before, "runs that were tested are kept"
    assert (runs / "tiny-seed2" / "metrics.json").is_file() and "run 3 of 3" in capsys.readouterr().err


def test_each_patient_is_tested_in_one_fold() -> None:
    patients = [f"p{number}" for number in range(1000)]
    splits = [assign_splits(patients, SplitConfig(validation=0.1, folds=5, fold=fold)) for fold in range(5)]
    tested = np.array(splits) == "test"
    assert (tested.sum(axis=0) == 1).all() and all(150 < count < 250 for count in tested.sum(axis=1))
    assert 60 < (np.array(splits[0]) == "validation").sum() < 140
    assert assign_splits(patients, SplitConfig(test=0.2)) == splits[0], "the first fold is the plain split of its share"


def test_folds_and_seeds_have_folders_and_seeds_of_their_own(tiny_config: Config) -> None:
    table = replace(tiny_config.data.table, split=None)
    config = replace(tiny_config, data=replace(tiny_config.data, table=table))
    folds = list(runs_of(config, 1, 3))
    assert [one.run.name for one in folds] == ["tiny-fold0", "tiny-fold1", "tiny-fold2"]
    assert [(one.data.split.fold, one.data.split.folds) for one in folds] == [(0, 3), (1, 3), (2, 3)]
    seeds = list(runs_of(config, 3, 0))
    assert [one.train.seed - config.train.seed for one in seeds] == [0, 1, 2]
    assert all(one.data.split == config.data.split for one in seeds)


@pytest.mark.parametrize(
    ("seeds", "folds", "says"),
    [(0, 0, "--seeds: 1 to 100"), (1, 1, "--folds: 2 to 100"), (3, 3, "choose one"), (101, 0, "--seeds: 1 to 100"),
     (1, 2, "--folds: the table has a fixed split; leave data.table.split away")],
)  # fmt: skip
def test_numbers_that_make_no_several_runs(tiny_config: Config, seeds: int, folds: int, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        list(runs_of(tiny_config, seeds, folds))


def test_several_processes_are_refused(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one run follows another in one process"):
        train_several(tiny_config, seeds=2)


def test_the_options_are_no_keys_of_the_config() -> None:
    config, _ = parse_config(["--seeds", "3", "--train.max_steps", "5"])
    assert config.train.max_steps == 5
    with pytest.raises(UserError, match=r"data\.split\.fold: must be from 0, below data\.split\.folds"):
        parse_config(["--data.split.fold", "2", "--data.split.folds", "2"])


def predictions(folder: Path, losses: list[float], patients: list[str]) -> Path:
    folder.mkdir()
    rows = [
        {"id": f"{patient}-{n}", "patient": patient, "report": "No opacity.", "reference": "No opacity.",
         "text_loss": loss, "tokens": 1, "labels": {}, "probabilities": {}, "logits": {}}
        for n, (loss, patient) in enumerate(zip(losses, patients, strict=True))
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def test_the_interval_holds_runs_and_patients(tmp_path: Path) -> None:
    """Runs that differ widen it, and so do patients; of folds each patient counts once."""
    rng, patients = np.random.default_rng(0), [f"p{n}" for n in range(200)]
    noise = rng.normal(0, 1, 200)
    alike = [predictions(tmp_path / f"a{n}", noise.tolist(), patients) for n in range(3)]
    apart = [predictions(tmp_path / f"b{n}", (noise + n).tolist(), patients) for n in range(3)]
    folds = [predictions(tmp_path / f"c{n}", noise[n::2].tolist(), patients[n::2]) for n in range(2)]

    def width(folders: list[Path]) -> float:
        found = pool_runs(folders, 2000)["measures"]["text loss per token"]["pooled"]
        return found["high"] - found["low"]

    assert width(alike) == pytest.approx(2 * 1.96 * noise.std() / 200**0.5, rel=0.15), "no narrower for three copies"
    assert width(apart) > 3 * width(alike)
    assert pool_runs(folds, 100)["patients"] == 200 and pool_runs(folds, 100)["cases"] == 200
    assert 0.8 * width(alike) < width(folds) < 3 * width(alike)


def test_a_rare_class_has_no_interval(tmp_path: Path) -> None:
    folders = []
    for run in range(2):
        folder = predictions(tmp_path / str(run), [1.0] * 40, [f"p{n}" for n in range(40)])
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for n, row in enumerate(rows):
            row |= {"labels": {"rare": int(n < 3), "usual": n % 2}, "logits": {"rare": n + run, "usual": (n * 7) % 5}}
            row["probabilities"] = {"rare": 0.5, "usual": 0.5}
        (folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        folders.append(folder)
    found = pool_runs(folders, 200)["measures"]
    assert found["AUROC rare"]["pooled"]["value"] == 0 and found["AUROC rare"]["pooled"]["low"] is None
    assert found["AUROC usual"]["pooled"]["low"] is not None
