"""A small cohort as files and in shards, and a cache that no other test has filled."""

from pathlib import Path

import pytest

from vlm.config import DataConfig, PhantomConfig
from vlm.data.cohort import Cohort
from vlm.data.packed import shards
from vlm.data.packed.shards import ShardCache
from vlm.data.prepare.pack import PackOptions, pack


def packed(root: Path | str, **options) -> DataConfig:
    return DataConfig(source="packed", root=str(root), image_size=32, **options)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A small built-in cohort as files."""
    root = tmp_path_factory.mktemp("loose") / "phantom"
    return DataConfig(source="phantom", root=str(root), image_size=32, phantom=PhantomConfig(cases=96, missing=0.1))


@pytest.fixture(scope="module")
def folder(loose: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in shards of 6 rows; for reading."""
    output = tmp_path_factory.mktemp("packed") / "phantom"
    pack(loose, output, PackOptions(rows=6))
    return output


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch: pytest.MonkeyPatch) -> ShardCache:
    """A test begins without shards that another has left open."""
    empty = ShardCache()
    monkeypatch.setattr(shards, "_cached", empty)
    return empty


def rows_by_id(cohort: Cohort) -> dict[str, dict]:
    return {row["id"]: row for row in cohort.dataset}


def assert_same_cases(a: Cohort, b: Cohort) -> None:
    """All but where the image lies; the rows may stand in another order."""
    ours, theirs = rows_by_id(a), rows_by_id(b)
    assert ours.keys() == theirs.keys()
    for name, row in ours.items():
        other = theirs[name]
        assert len(row["images"]) == len(other["images"])
        assert repr({**row, "images": None}) == repr({**other, "images": None})  # NaN is not equal to itself
    meanings = [(c.schema, c.labels, c.sections, c.label_findings, c.facts, c.fingerprint) for c in (a, b)]
    assert meanings[0] == meanings[1]
