"""Damaged shards and those of strangers are refused by name."""

import hashlib
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import read_json
from tests.packs import folder, loose, nothing_cached, packed
from vlm.data.case import CaseSpec
from vlm.data.dataset import load_pictures
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed.manifest import FILE
from vlm.errors import UserError

__all__ = ["folder", "loose", "nothing_cached"]  # fixtures


# ------------------------------------------------------------------------------------- damage, strangers


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A pack to be damaged."""
    there = tmp_path / "copy"
    there.mkdir()
    for file in folder.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    return there


def read_all(root: Path) -> None:
    cohort = load_cohort(packed(root))
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    for cells in cohort.dataset["images"]:
        load_pictures(cells, spec)


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.unlink(), "no such file"),
        (lambda f: f.write_bytes(f.read_bytes()[:-9]), "damaged: .* bytes, .* when packed"),
        (lambda f: f.write_bytes(f.read_bytes() + b"x"), "damaged: .* bytes, .* when packed"),
        (lambda f: f.write_bytes(flip(f.read_bytes(), len(f.read_bytes()) // 2)), "damaged: its SHA-256"),
        (
            lambda f: f.write_bytes(flip(f.read_bytes(), f.read_bytes().rfind(b"phantom", 0, 300))),
            "cannot be read: .*CRC",
        ),
        (lambda f: f.write_bytes(b"x" * f.stat().st_size), "cannot be read: "),
    ],
    ids=["missing", "cut", "longer", "an image", "a row", "junk"],
)
def test_a_damaged_shard_is_named(change, message: str, copy: Path) -> None:
    change(copy / "train-00002-of-00012.parquet")
    with pytest.raises(UserError, match=rf"train-00002-of-00012\.parquet: {message}") as error:
        read_all(copy)
    assert "\n" not in str(error.value)


def rewrite(file: Path, change, **options) -> None:
    """A shard that another program wrote, and a pack.json that vouches for it."""
    table = change(pq.read_table(file))
    pq.write_table(table, file, **{"compression": "none", "use_dictionary": False} | options)
    vouch(file, len(table))


def vouch(file: Path, rows: int) -> None:
    values = read_json(file.parent / FILE)
    data = file.read_bytes()
    values["shards"][file.name] = {"rows": rows, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (file.parent / FILE).write_text(json.dumps(values))


def with_column(table, name: str, values: list):
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), [values])


@pytest.mark.parametrize("column", ["id", "image.bytes"])
def test_a_shard_whose_footer_hides_an_encoding_is_refused(column: str, copy: Path) -> None:
    file = copy / "train-00002-of-00012.parquet"
    rewrite(file, lambda t: t, column_encoding={column: "DELTA_BYTE_ARRAY"})
    data = file.read_bytes()
    assert len(re.findall(rb"\x19\x25\x06\x0e", data)) == 1  # RLE and DELTA_BYTE_ARRAY
    file.write_bytes(data.replace(b"\x19\x25\x06\x0e", b"\x19\x25\x06\x00"))
    vouch(file, pq.read_metadata(file).num_rows)
    with pytest.raises(UserError, match=r"not the shard that pack\.json describes"):
        read_all(copy)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t.drop_columns(["context"]), {}, "not the shard that pack.json describes"),
        (lambda t: t, {"compression": "zstd"}, "not the shard that pack.json describes"),
        (lambda t: t, {"use_dictionary": True}, "not the shard that pack.json describes"),
        (lambda t: t, {"column_encoding": {"id": "DELTA_BYTE_ARRAY"}}, "not the shard that pack.json describes"),
        (lambda t: with_column(t, "id", [None, *t["id"].to_pylist()[1:]]), {}, "an empty cell in the column id"),
        (lambda t: with_column(t, "split", ["test"] * len(t)), {}, "rows of another split"),
        (lambda t: with_column(t, "id", ["x", *t["id"].to_pylist()[1:]]), {}, "not the cases that were packed"),
    ],
    ids=["column", "compressed", "dictionary", "prefixes", "no id", "split", "another id"],
)
def test_an_untrusted_shard_is_refused(change, options: dict, message: str, copy: Path) -> None:
    rewrite(copy / "train-00002-of-00012.parquet", change, **options)
    with pytest.raises(UserError, match=message):
        load_cohort(packed(copy))


def change_pack(change):
    def changed(copy: Path) -> None:
        values = read_json(copy / FILE)
        change(values)
        (copy / FILE).write_text(json.dumps(values))

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: (c / FILE).unlink(), "no such file"),
        (lambda c: (c / FILE).write_text("{"), "cannot read the pack: "),
        (lambda c: (c / FILE).write_text("[" * 10**5), "nested deeper"),
        (lambda c: (c / FILE).write_text('{"run": 1}'), "format None, this version reads 1 and 2; was it made by"),
        (change_pack(lambda v: v.update(format=3)), "format 3, this version reads 1 and 2"),
        (change_pack(lambda v: v.pop("labels")), "labels is missing"),
        (change_pack(lambda v: v.update(labels=["<b>x"] * 9)), "cannot be shown as a name"),
        (change_pack(lambda v: v.update(labels=["x"] * 9)), "one stands there twice"),
        (change_pack(lambda v: v["vitals"][0].update(unitt="x")), "unknown key unitt"),
        (change_pack(lambda v: v["sections"][0].update(needs=["spleen"])), "unknown vital spleen"),
        (change_pack(lambda v: v.update(warnings=["\x1b[2Jx"])), "a character that cannot be shown"),
        (change_pack(lambda v: v["shards"].update({"../x": {"rows": 1, "size": 9, "sha256": "0" * 64}})), "in order"),
        (change_pack(lambda v: v["shards"].popitem()), "not the shards 00000 to the last"),
        (change_pack(lambda v: v["shards"]["train-00000-of-00012.parquet"].update(size=2**40)), "no shard has such"),
        (change_pack(lambda v: v["shards"]["train-00000-of-00012.parquet"].update(sha256="")), "no shard has such"),
        (change_pack(lambda v: v.update(label_findings={"spleen": "x"})), "label_findings"),
    ],
)
def test_an_untrusted_pack_is_validated_first(change, message: str, copy: Path) -> None:
    change(copy)
    with pytest.raises(UserError, match=rf"pack\.json: .*{message}") as error:
        load_cohort(packed(copy))
    assert "\n" not in str(error.value) and len(str(error.value)) < 800
