"""Studies in shards: laterals, earlier studies and their reports stay; what is no study of ours is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import read_json
from tests.data.test_packed_damage import rewrite
from tests.data.test_table_studies import KEYS, STUDIES, table_of
from tests.packs import assert_same_cases, nothing_cached, packed, rows_by_id
from vlm.config import DataConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import load_pictures
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed.manifest import FILE
from vlm.data.prepare.pack import PackOptions, pack
from vlm.errors import UserError

__all__ = ["nothing_cached"]


@pytest.fixture
def studies(tmp_path: Path) -> DataConfig:
    (tmp_path / "t").mkdir()
    return table_of(tmp_path / "t", STUDIES, **KEYS)


@pytest.mark.parametrize("side", [0, 64])
def test_packed_studies_are_the_cases_that_were_packed(studies: DataConfig, side: int, tmp_path: Path) -> None:
    pack(studies, tmp_path / "packed", PackOptions(rows=2, image_side=side))
    assert read_json(tmp_path / "packed" / FILE)["format"] == 2
    loose, shards = load_cohort(studies), load_cohort(packed(tmp_path / "packed"))
    assert_same_cases(loose, shards)
    theirs, spec = rows_by_id(shards), CaseSpec.fit(loose, ImageSpec(32), 3, 5)
    assert CaseSpec.fit(shards, ImageSpec(32), 3, 5).study == spec.study
    priors = 0
    for name, row in rows_by_id(loose).items():
        ours, others = load_pictures(row["images"], spec), load_pictures(theirs[name]["images"], spec)
        key = lambda item: (item.prior, item.view, item.picture.tobytes())  # noqa: E731
        for a, b in zip(sorted(ours, key=key), sorted(others, key=key), strict=True):
            assert a[1:] == b[1:] and np.array_equal(a.picture, b.picture)
        priors += any(item.prior for item in ours)
    assert priors == 2


def changed(table: pa.Table, edit: Any) -> pa.Table:
    """Edit the images of each row of a shard."""
    name = table.schema.names[-1]
    cells = [edit(row) for row in table[name].to_pylist()]
    return table.set_column(len(table.schema) - 1, table.schema.field(name), pa.array(cells, table.schema.types[-1]))


def with_role(**role: Any) -> Any:
    return lambda cells: [{**cell, **role} for cell in cells]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (with_role(view="<b>"), "is no view"),
        (with_role(view="LATERAL"), "a view or time as we never write it"),
        (with_role(view=None), "an image without its role"),
        (with_role(prior=None), "an image without its role"),
        (with_role(days=-3.0), "a view or time as we never write it"),
        (with_role(days=float("inf")), "a view or time as we never write it"),
        (lambda cells: [*cells, None], "an image without its role"),
        (lambda cells: cells * 40, "more than 32 images"),
    ],
    ids=["markup", "other spelling", "no view", "no prior", "after", "infinite", "null", "too many"],
)
def test_a_foreign_study_is_refused(studies: DataConfig, edit: Any, message: str, tmp_path: Path) -> None:
    pack(studies, tmp_path / "packed", PackOptions(rows=9))
    (shard, *_) = sorted((tmp_path / "packed").glob("*.parquet"))
    rewrite(shard, lambda table: changed(table, edit), write_page_checksum=True)
    with pytest.raises(UserError, match=message) as error:
        load_cohort(packed(tmp_path / "packed"))
    assert "\n" not in str(error.value)


def test_a_table_without_roles_is_packed_as_before(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    plain = table_of(tmp_path / "t", "image,text\na.png,x\nb.png,y\n,z\n")
    pack(plain, tmp_path / "packed", PackOptions())
    assert read_json(tmp_path / "packed" / FILE)["format"] == 1
    (shard, *_) = (tmp_path / "packed").glob("*.parquet")
    assert pq.read_schema(shard).names[-1] == "image"
    assert_same_cases(load_cohort(plain), load_cohort(packed(tmp_path / "packed")))
