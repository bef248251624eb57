"""Datasets of the Hub: one commit's Parquet shards, their splits kept by patient, from a Hub on loopback."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
from huggingface_hub import constants

from tests import parquet_bombs
from tests.cells import rows_of
from tests.hub_server import HubServer, hub
from vlm.config import DataConfig, SectionConfig, SplitConfig, TableConfig
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError

__all__ = ["hub"]  # a fixture

REPO = "user/ward-7"
TABLE = TableConfig(patient="who", labels=["edema"], report=[SectionConfig("text")])


def shard(first: int, rows: int, who: str = "p", **columns: list) -> bytes:
    """Rows of a dataset as the library writes them, the images inside."""
    grey = [np.full((8, 8), (first + i) % 250, np.uint8) + np.eye(8, dtype=np.uint8) for i in range(rows)]
    pictures = [cv2.imencode(".png", image)[1].tobytes() for image in grey]
    table = datasets.Dataset.from_dict({
        "image": [{"bytes": data, "path": f"{first + i}.png"} for i, data in enumerate(pictures)],
        "who": [f"{who}{(first + i) // 2}" for i in range(rows)], "edema": [i % 2 for i in range(rows)],
        "text": [f"Text {first + i}." for i in range(rows)], **columns})  # fmt: skip
    file = io.BytesIO()
    table.cast_column("image", datasets.Image()).to_parquet(file)
    return file.getvalue()


def splits() -> dict[str, bytes]:
    return {"data/train-00000-of-00002.parquet": shard(0, 6), "data/train-00001-of-00002.parquet": shard(6, 4),
            "data/validation-00000-of-00001.parquet": shard(20, 4),
            "data/test-00000-of-00001.parquet": shard(30, 2)}  # fmt: skip


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def load(root: object, table: TableConfig = TABLE, **options):
    return load_cohort(DataConfig(source="hub", root=str(root), table=table, **options))


def refusal(root: object, **options) -> str:
    with pytest.raises(UserError) as error:
        load(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_commit_is_read_with_its_splits_and_nothing_but_parquet_is_fetched(hub: HubServer, capfd) -> None:
    others = {"ward-7.py": b"raise SystemExit", "data/more.csv": b"a,b\n", "README.md": b"---\n---\n"}
    repo = hub.add(f"datasets/{REPO}", splits() | others)
    commit = repo.branches["main"]
    cohort = load(f"hf://datasets/{REPO}@{commit}")
    assert Counter(cohort.dataset["split"]) == {"train": 10, "validation": 4, "test": 2}
    row = rows_of(cohort)["train-8"]
    assert row["sections"] == ["Text 7."] and row["patient"] == "p3" and row["labels"] == {"edema": 1}
    assert row["image"].startswith("embedded://") and len(set(map(str, cohort.dataset["images"]))) == 16
    fetched = {line.rpartition("/")[2] for line in hub.seen if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {name.rpartition("/")[2] for name in splits()}
    said = capfd.readouterr().err
    assert said.count(f"{REPO}: commit {commit}: 4 Parquet files of 0.0 MB, of which 0.0 MB are fetched now") == 1
    assert not any("names no commit" in warning for warning in cohort.warnings)
    repo.commit("main", {"data/train-00000-of-00001.parquet": shard(0, 2)}, "fewer")
    assert load(f"hf://datasets/{REPO}@{commit}").fingerprint == cohort.fingerprint, "the commit, not the branch"
    newer = load(f"hf://datasets/{REPO}")
    assert len(newer.dataset) == 2
    kept = f"write hf://datasets/{REPO}@{repo.branches['main']} to keep this one"
    assert any(kept in warning for warning in newer.warnings)


def test_a_folder_in_it_and_the_copy_of_the_hub(hub: HubServer) -> None:
    repo = hub.add(f"datasets/{REPO}", {"rows.csv": b"a\n", "en/train-00000-of-00001.parquet": shard(0, 4),
                                        "de/train-00000-of-00001.parquet": shard(50, 2)})  # fmt: skip
    assert len(load(f"hf://datasets/{REPO}@main/de").dataset) == 2
    assert f"{REPO}@main: holds several tables, de, en; add the folder" in refusal(f"hf://datasets/{REPO}@main")
    assert len(load(f"hf://datasets/{REPO}@main/en/").dataset) == 4
    repo.commit("refs/convert/parquet", {"default/train/0000.parquet": shard(0, 4), "default/test/0000.parquet":
                                         shard(8, 2)}, "converted")  # fmt: skip
    converted = load(f"hf://datasets/{REPO}@refs/convert/parquet")
    assert len(converted.dataset) == 6 and Counter(converted.dataset["split"])["test"] == 2
    repo.commit("empty", {"rows.csv": b"a\n"}, "none")
    assert refusal(f"hf://datasets/{REPO}@empty").endswith(f"copy may be at hf://datasets/{REPO}@refs/convert/parquet")


def test_missing_splits_are_drawn_from_the_patients_of_train(tmp_path: Path) -> None:
    files = {"train-00000-of-00001.parquet": shard(0, 200), "test-00000-of-00001.parquet": shard(400, 10)}
    root, share = folder_of(tmp_path / "a", files), SplitConfig(validation=0.3, test=0.2)
    cohort = load(root, split=share)
    counts = Counter(cohort.dataset["split"])
    assert counts["test"] == 10 and 20 < counts["validation"] < 100 and sum(counts.values()) == 210
    assert any("no split validation; drawn from the patients of train" in warning for warning in cohort.warnings)
    alone = load(folder_of(tmp_path / "b", {"train.parquet": files["train-00000-of-00001.parquet"]}), split=share)
    plain = load(folder_of(tmp_path / "c", {"rows.parquet": files["train-00000-of-00001.parquet"]}), split=share)
    assert alone.dataset["split"][:] == plain.dataset["split"][:] and set(alone.dataset["split"]) == set(counts)
    assert not any("no split" in warning for warning in plain.warnings)
    nobody = load(root, TableConfig(labels=["edema"]), split=share)
    assert any("no patient column is named" in warning for warning in nobody.warnings)
    assert "--folds" in refusal(root, split=SplitConfig(folds=5))


def test_a_column_of_the_split_goes_before_the_names(tmp_path: Path) -> None:
    data = shard(0, 6, part=["train", "train", "dev", "dev", "test", "test"])
    root = folder_of(tmp_path, {"train.parquet": data})
    cohort = load(root, TableConfig(patient="who", split="part"))
    assert Counter(cohort.dataset["split"]) == {"train": 2, "validation": 2, "test": 2}


TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


@pytest.mark.parametrize(("files", "message"), [
    ({TRAIN: shard(0, 4), TEST: shard(2, 4)}, "1 patients are in two splits; the split must be by patient"),
    ({"train-00000-of-00002.parquet": shard(0, 4)}, "train: 1 of 2 shards are there; fetch the others"),
    ({TRAIN: shard(0, 4), "more.parquet": shard(8, 2)}, "more.parquet: its name tells no split"),
    ({"a/train.parquet": shard(0, 2), "b/train.parquet": shard(2, 2)}, "holds several tables, a, b; add the folder"),
    ({"default/partial-train/0000.parquet": shard(0, 2)}, "the Hub converted a part of the dataset alone"),
    ({"rows.csv": b"a\n"}, "a folder without .parquet files"),
    ({"train/state.json": b"{}", "train/data.arrow": b""}, 'load_from_disk(…)["train"].to_parquet("train.parquet")'),
    ({TRAIN: shard(0, 4)[:-9]}, f"{TRAIN}: cannot read the table: "),
    ({TRAIN: shard(0, 4)[:300] + bytes(200) + shard(0, 4)[500:]}, f"{TRAIN}: "),
    ({TRAIN: b"not Parquet at all"}, f"{TRAIN}: cannot read the table: "),
    ({TRAIN: shard(0, 4, glucose=["x"] * 4)}, ""),
])  # fmt: skip
def test_a_folder_that_is_no_whole_dataset_is_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path, files)
    if not message:
        assert len(load(root).dataset) == 4
        return
    assert message in refusal(root)


def test_images_in_lists_are_refused_not_lost(tmp_path: Path) -> None:
    cells = [[{"bytes": b"x", "path": "a.png"}]] * 4
    root = folder_of(tmp_path, {TRAIN: shard(0, 4, images=cells)})
    said = refusal(root, table=replace(TABLE, image="images"))
    assert "row 2: column images holds images, not names of files; write one a row, as {bytes, path}" in said


@pytest.mark.parametrize("bomb", ["dictionary_of_one_giant"])
def test_a_bomb_from_the_hub_is_refused(bomb: str, hub: HubServer, tmp_path: Path) -> None:
    getattr(parquet_bombs, bomb)(tmp_path / "t.parquet")
    hub.add(f"datasets/{REPO}", {"data/train-00000-of-00001.parquet": (tmp_path / "t.parquet").read_bytes()})
    said = refusal(f"hf://datasets/{REPO}@main")
    assert "train-00000-of-00001.parquet" in said and "unpacks to" in said


def test_what_the_hub_refuses_is_one_line(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.add(f"datasets/{REPO}", splits())
    for address in ("hf://datasets/alone", f"s3://datasets/{REPO}", f"hf://datasets/{REPO}@main/../x", "hf://user/x"):
        assert refusal(address) == f"data.root: {address}: write hf://datasets/OWNER/NAME@REVISION, or a folder"
    assert "no such folder; set data.root to hf://datasets/" in refusal(REPO)
    assert refusal("hf://datasets/user/none").endswith("your token may not see; `hf auth login`")
    assert refusal(f"hf://datasets/{REPO}@v9").endswith("the Hub did not give it: no revision v9")
    load(f"hf://datasets/{REPO}")
    next(Path(constants.HF_HUB_CACHE).rglob("train-00001-of-00002.parquet")).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for address in (f"hf://datasets/{REPO}@{repo.branches['main']}", "hf://datasets/user/never-seen"):
        assert "cannot be reached" in refusal(address), "a cache of a part is no smaller dataset"
