"""Packed data: the same cases and pictures out of shards, from any address, in an order that reads each shard once."""

import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import cv2
import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import read_json
from tests.data.test_dicom import CANARY as DICOM_CANARY
from tests.data.test_examples import same
from tests.test_privacy import CANARY, canaries_in, ward
from tests.training.test_training import trained, with_train
from vlm.cli import main
from vlm.config import Config, DataConfig, DropoutConfig, PhantomConfig, SectionConfig, SourceConfig
from vlm.data.case import CaseSpec
from vlm.data.cohort import Cohort, features
from vlm.data.dataset import CaseDataset, load_picture
from vlm.data.images.image import ImageSpec, decode_image, read_image, to_square
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed import shards
from vlm.data.packed.manifest import FILE, read_pack
from vlm.data.packed.shards import ShardCache, references
from vlm.data.prepare.pack import PackOptions, pack, reduced
from vlm.data.sampling import ShardSampler, shards_of
from vlm.data.storage import write_rows
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics
from vlm.errors import UserError
from vlm.training.run import train
from vlm.training.run_folder import RunFolder, read_log

__all__ = ["ward"]  # a fixture


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
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> ShardCache:
    """A test begins without shards that another has left open."""
    held = ShardCache()
    monkeypatch.setattr(shards, "_cached", held)
    return held


def rows_by_id(cohort: Cohort) -> dict[str, dict]:
    return {row["id"]: row for row in cohort.dataset}


def assert_same_cases(a: Cohort, b: Cohort) -> None:
    """All but where the image lies; the rows may stand in another order."""
    ours, theirs = rows_by_id(a), rows_by_id(b)
    assert ours.keys() == theirs.keys()
    for name, row in ours.items():
        other = theirs[name]
        assert (row["image"] is None) == (other["image"] is None)
        assert repr({**row, "image": None}) == repr({**other, "image": None})  # NaN is not equal to itself
    meanings = [(c.schema, c.labels, c.sections, c.label_findings, c.facts, c.fingerprint) for c in (a, b)]
    assert meanings[0] == meanings[1]


# ------------------------------------------------------------------------------------------- round trip


def test_a_packed_cohort_is_the_cohort(loose: DataConfig, folder: Path) -> None:
    here, there = load_cohort(loose), load_cohort(packed(folder))
    assert_same_cases(here, there)
    assert there.facts is not None and there.label_findings == {"pathology": "opacity"}
    ours, theirs = rows_by_id(here), rows_by_id(there)
    for name in list(ours)[:40]:
        if cell := ours[name]["image"]:
            np.testing.assert_array_equal(read_image(cell["path"]), shards.read_packed(theirs[name]["image"]["path"]))
    assert {path.name for path in folder.iterdir()} == {FILE, *read_json(folder / FILE)["shards"]}
    sizes = [entry["rows"] for name, entry in read_json(folder / FILE)["shards"].items() if name.startswith("train")]
    assert len(sizes) > 8 and set(sizes[:-1]) == {6}


def test_tables_with_dicom_keep_every_picture(ward: Config, tmp_path: Path, capsys) -> None:
    said = "\n".join(pack(ward.data, tmp_path / "packed", PackOptions()))
    assert "12 are DICOM, with the names and dates of their headers" in said and "--image_side" in said
    assert "warning: cases.csv: glucose: 1 values" in said, "no path of this machine stands in a pack"
    here, there = load_cohort(ward.data), load_cohort(packed(tmp_path / "packed"))
    assert_same_cases(here, there)
    theirs = rows_by_id(there)
    for name, row in rows_by_id(here).items():
        np.testing.assert_array_equal(
            load_picture(row["image"], CaseSpec.fit(here, ImageSpec(32), 3)),
            load_picture(theirs[name]["image"], CaseSpec.fit(there, ImageSpec(32), 3)),
        )


def test_file_names_stay_at_home_and_headers_too_where_pixels_alone_are_stored(ward: Config, tmp_path: Path) -> None:
    for name, side in (("files", 0), ("pixels", 64)):
        said = "\n".join(pack(ward.data, tmp_path / name, PackOptions(image_side=side)))
        assert ("headers" in said) == (side == 0)
    written = {name: b"".join(f.read_bytes() for f in (tmp_path / name).iterdir()) for name in ("files", "pixels")}
    for data in written.values():
        assert f"{CANARY}-file".encode() not in data and ward.data.root.encode() not in data
    assert f"{CANARY} report".encode() in written["pixels"], "a search that finds nothing proves nothing"
    assert DICOM_CANARY.encode() in written["files"] and DICOM_CANARY.encode() not in written["pixels"]
    for file in (tmp_path / "pixels").glob("*.parquet"):
        for number, cell in enumerate(pq.read_table(file)["image"].to_pylist()):
            (tmp_path / f"{number}.png").write_bytes(cell["bytes"])
            assert cell["path"] is None and not canaries_in(tmp_path / f"{number}.png")


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("shape", [(300, 260), (50, 40)])
def test_reduced_pictures_are_nearly_the_same(bits: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(bits)
    smooth = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 3)
    values = np.round((smooth - smooth.min()) / np.ptp(smooth) * (2**bits - 1)).astype(np.float32)
    spec = ImageSpec(32)
    for image in (values, -values, values / 7 - 3):  # as they come, inverted, and rescaled to real numbers
        again = decode_image(reduced(image, 128), "again")
        assert max(again.shape) == min(max(shape), 128)
        off = np.abs(to_square(again, spec).astype(int) - to_square(image, spec).astype(int))
        assert off.max() <= 4 and off.mean() < 1
    if max(shape) <= 128:
        np.testing.assert_array_equal(decode_image(reduced(values, 128), "same"), values)
    padded = values.copy()
    padded[:10] = np.nan
    assert (decode_image(reduced(padded, 512), "padded")[:10] == values[10:].min()).all()


def test_datasets_streams_the_shards_and_knows_the_splits(folder: Path) -> None:
    streams = datasets.load_dataset(str(folder), streaming=True)
    assert set(streams) == {"train", "validation", "test"}
    cases = [case for case in islice(streams["train"], 12) if case["image"]]
    ours = rows_by_id(load_cohort(packed(folder)))
    for case in cases:
        shown = np.array(case["image"].convert("L"), dtype=np.float32)
        np.testing.assert_array_equal(shown, shards.read_packed(ours[case["id"]]["image"]["path"]))


def test_labels_may_be_chosen_and_findings_added(loose: DataConfig, folder: Path) -> None:
    table = replace(loose.table, labels=["left_lung", "pathology"])
    chosen = load_cohort(packed(folder, table=table, finding_labels=["opacity"]))
    assert chosen.labels == ("left_lung", "pathology", "opacity")
    every = load_cohort(replace(loose, finding_labels=["opacity"]))
    places = [every.labels.index(name) for name in chosen.labels]
    wanted = {name: [row["labels"][place] for place in places] for name, row in rows_by_id(every).items()}
    assert {name: row["labels"] for name, row in rows_by_id(chosen).items()} == wanted
    with pytest.raises(UserError, match=r"data\.table\.labels: spleen is none of pathology, "):
        load_cohort(packed(folder, table=replace(loose.table, labels=["spleen"])))


def test_a_pack_is_one_of_several_sources_and_keeps_their_weights(
    loose: DataConfig, folder: Path, ward: Config, tmp_path: Path
) -> None:
    sources = [SourceConfig("packed", str(folder), name="a", weight=2),
               SourceConfig("table", ward.data.root, name="b", table=ward.data.table)]  # fmt: skip
    joined = load_cohort(replace(loose, sources=sources))
    unpacked = [SourceConfig("phantom", loose.root, name="a", weight=2, phantom=loose.phantom), sources[1]]
    both = replace(loose, sources=unpacked)
    assert_same_cases(joined, load_cohort(both))
    pack(both, tmp_path / "both", PackOptions(rows=10))
    again = load_cohort(packed(tmp_path / "both"))
    assert_same_cases(joined, again)
    assert {row["weight"] for row in again.dataset} == {1, 2} and "\n  a: train" in again.describe()


# ---------------------------------------------------------------------------------------- any address


def upload(folder: Path, root: str) -> str:
    filesystem, _ = fsspec.core.url_to_fs(root)
    for file in folder.iterdir():
        filesystem.pipe_file(f"{root}/{file.name}", file.read_bytes())
    return root


@pytest.mark.parametrize("address", ["memory://{}", "simplecache::memory://{}", "file://{}", "{}/"])
def test_it_is_read_from_any_address(address: str, folder: Path, loose: DataConfig, tmp_path: Path) -> None:
    place = str(folder)
    if "memory" in address:
        place = f"/{tmp_path.name}"
        upload(folder, f"memory:/{place}")
    cohort = load_cohort(packed(address.format(place)))
    assert_same_cases(cohort, load_cohort(loose))
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    assert any(load_picture(cell, spec) is not None for cell in cohort.split("test")["image"])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gopher://x", "Protocol not known: gopher"),
        ("/no/such", "no such file"),
        ("memory://none", "no such file"),
    ],
)
def test_what_is_no_address_is_named(address: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"{address}/pack\.json: .*{message}"):
        load_cohort(packed(address))


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
    for cell in cohort.dataset["image"]:
        load_picture(cell, spec)


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
def test_a_strangers_shard_is_refused(change, options: dict, message: str, copy: Path) -> None:
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
        (lambda c: (c / FILE).write_text('{"run": 1}'), "format None, this version reads 1; was it made by"),
        (change_pack(lambda v: v.update(format=2)), "format 2, this version reads 1"),
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
def test_a_strangers_pack_is_judged_first(change, message: str, copy: Path) -> None:
    change(copy)
    with pytest.raises(UserError, match=rf"pack\.json: .*{message}") as error:
        load_cohort(packed(copy))
    assert "\n" not in str(error.value) and len(str(error.value)) < 800


# ------------------------------------------------------------------------------------------- writing


def test_an_interrupted_pack_is_not_there(loose: DataConfig, tmp_path: Path, monkeypatch) -> None:
    import vlm.data.prepare.pack as writing

    write_file = writing.write_file
    for last in ("train-3", "test-0", FILE):

        def interrupted(file: Path, data: bytes, last: str = last) -> None:
            if file.name == last:
                raise KeyboardInterrupt
            write_file(file, data)

        monkeypatch.setattr(writing, "write_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack(loose, tmp_path / "pack", PackOptions(rows=6))
        assert not list(tmp_path.iterdir())


def test_what_cannot_be_packed_is_named_and_nothing_is_written(ward: Config, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is there already and not empty"):
        pack(ward.data, folder, PackOptions())
    with pytest.raises(UserError, match="shards are not packed again"):
        pack(packed(folder), tmp_path / "again", PackOptions())
    broken = Path(ward.data.root) / "images" / f"{CANARY}-file-3.dcm"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"file-3\.dcm: not a readable DICOM image"):
        pack(ward.data, tmp_path / "broken", PackOptions())
    for options in ({"rows": 0}, {"image_side": 3}):
        with pytest.raises(UserError, match="--"):
            PackOptions(**options)
    assert {path.name for path in tmp_path.iterdir()} <= {"ward", "runs"}


def test_the_command_packs_and_says_so(loose: DataConfig, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "job.yaml").write_text("data: {phantom: {cases: 96, missing: 0.1}}\n")
    words = ["pack", "--config", str(tmp_path / "job.yaml"), "--data.root", loose.root, "--output"]
    main([*words, str(tmp_path / "out"), "--rows_per_shard", "20"])
    assert f"--data.source packed --data.root {tmp_path}/out" in capsys.readouterr().out
    assert_same_cases(load_cohort(packed(tmp_path / "out")), load_cohort(loose))
    for more, message in (("s3://bucket/out", "a folder of this machine"), ("x --data.rot y", "mean --data.root")):
        with pytest.raises(UserError, match=message):
            main([*words, *more.split()])


def test_a_large_image_ends_its_shard(ward: Config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("vlm.data.prepare.pack.LARGEST", 3000)
    pack(ward.data, tmp_path / "packed", PackOptions())
    rows = [shard.rows for shard in read_pack(str(tmp_path / "packed")).shards.values()]
    assert len(rows) > 6 and sum(rows) == 24
    assert_same_cases(load_cohort(ward.data), load_cohort(packed(tmp_path / "packed")))


# --------------------------------------------------------------------------------------------- order


def cases(sizes: list[int], streams: int, without: int = 7, weights: np.ndarray | None = None) -> CaseDataset:
    """Rows of shards of these sizes, with reports of many lengths; some have no image."""
    parts, numbers = [], iter(range(sum(sizes)))
    for shard, size in enumerate(sizes):
        own = list(islice(numbers, size))
        ids, nothing = [f"c{row}" for row in own], [""] * size
        there = pa.array([row % without != without - 1 for row in own])
        parts.append({
            "id": ids, "patient": ids, "split": ["train"] * size, "image": references(there, f"s3://x/{shard}"),
            "vitals": [[]] * size, "labels": [[]] * size, "sections": [["x" * (row * row % 53)] for row in own],
            "context": nothing, "probability": [None] * size, "source": nothing,
            "weight": [1.0] * size if weights is None else weights[own],
        })  # fmt: skip
    rows = write_rows(parts, features(0, 0, 1))
    spec = CaseSpec(ImageSpec(32), VitalsSchema(()), VitalsStatistics((), (), ()), ())
    section = [SectionConfig("report")]
    return CaseDataset(rows, spec, section, dropout=DropoutConfig(), interleave_shards=streams, seed=3)


def sampler_of(dataset: CaseDataset, batch: int, micro: int = 1, processes: int = 1) -> ShardSampler:
    shard_numbers = shards_of(dataset)
    assert shard_numbers is not None
    return ShardSampler(dataset, shard_numbers, batch, micro, processes)


def of_processes(dataset: CaseDataset, batch: int, micro: int, processes: int) -> list[list[list[int]]]:
    """What accelerate gives to each process: its micro batches, in turn."""
    batches = torch.utils.data.BatchSampler(sampler_of(dataset, batch, micro, processes), micro, drop_last=False)
    return [list(BatchSamplerShard(batches, processes, index, even_batches=False)) for index in range(processes)]


def step_of(given: list[list[list[int]]], number: int, each: int) -> list[int]:
    """The cases of one optimizer step, of all processes; each of them makes so many micro batches of it."""
    return sorted(chain(*(chain(*micros[number * each : (number + 1) * each]) for micros in given)))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.sampled_from([8, 16, 24]),
    st.integers(0, 3),
)
def test_every_case_once_and_the_same_steps_for_any_number_of_processes(sizes, streams, batch, epoch) -> None:
    dataset = cases(sizes, streams)
    dataset.set_epoch(epoch)
    alone = list(sampler_of(dataset, batch))
    assert sorted(alone) == list(range(sum(sizes))) and len(sampler_of(dataset, batch)) == len(alone)
    for processes in (1, 2, 4, 8):
        share = batch // processes
        for micro in {1, math.gcd(share, 4), share}:
            given = of_processes(dataset, batch, micro, processes)
            assert sorted(chain(*chain(*given))) == sorted(alone)
            for number in range(len(alone) // batch):
                step = sorted(alone[number * batch : (number + 1) * batch])
                assert step_of(given, number, share // micro) == step
    assert list(sampler_of(dataset, batch)) == alone
    dataset.set_epoch(epoch + 1)
    assert len(alone) < 3 * batch or list(sampler_of(dataset, batch)) != alone


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_shards_are_assigned_to_processes_without_overlap(processes: int, micro: int) -> None:
    """Wholly where the streams come out even, as with shards of one size; else all but one or two shards of each."""
    even, uneven = cases([20] * 32, streams=8, without=1000), cases([20, 7, 33, 12] * 9, streams=8)
    for dataset, most in ((even, 0), (uneven, 2 * 8)):
        own = shards_of(dataset)
        for epoch in range(4):
            dataset.set_epoch(epoch)
            given = of_processes(dataset, 32, micro, processes)
            seen = Counter(shard for micros in given for shard in {int(own[row]) for m in micros for row in m})
            assert len(seen) == len(set(own)) and sum(count - 1 for count in seen.values()) <= most


def test_rows_without_an_image_go_with_their_neighbours_and_files_are_in_no_shard(loose: DataConfig) -> None:
    assert shards_of(cases([3, 4, 5], 2, without=4)).tolist() == [0] * 4 + [1] * 4 + [2] * 4  # 3, 7 have none
    assert shards_of(training_cases(loose)) is None


def test_weighted_cases_are_drawn_by_weight_and_still_shard_by_shard() -> None:
    dataset = cases([20] * 16, 4, weights=np.repeat([1.0, 3.0], 160))
    own = shards_of(dataset)
    drawn: Counter[int] = Counter()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        order = list(sampler_of(dataset, 8))
        assert len(order) == 320 and len(set(order)) < 320, "with replacement"
        streams = np.array(order[:160]).reshape(-1, 4, 2).swapaxes(0, 1).reshape(4, -1)  # of half an epoch
        changes = [(np.diff(own[stream]) != 0).sum() for stream in streams]  # 3 where a step sorts two shards by length
        shards = [len(set(own[stream])) for stream in streams]
        assert all(c <= 3 * (count - 1) for c, count in zip(changes, shards, strict=True)), "shard by shard"
        drawn.update(order)
    heavy = sum(count for row, count in drawn.items() if row >= 160) / drawn.total()
    assert abs(heavy - 0.75) < 0.02


# ------------------------------------------------------------------------------------------- training


def training_cases(data: DataConfig, rows: list[int] | None = None) -> CaseDataset:
    cohort = load_cohort(data)
    of_split = cohort.split("train") if rows is None else cohort.split("train").select(rows)
    spec, dropout = CaseSpec.fit(cohort, ImageSpec(32), 3), DropoutConfig(0.2, 0.2, 0.2)
    return CaseDataset(of_split, spec, cohort.sections, dropout=dropout, interleave_shards=data.interleave_shards)


def test_an_epoch_opens_each_shard_once(folder: Path, monkeypatch, nothing_held: ShardCache) -> None:
    opened = Counter()
    fetch = shards._fetch
    monkeypatch.setattr(shards, "_fetch", lambda address: opened.update([address]) or fetch(address))
    dataset = training_cases(packed(folder, interleave_shards=4))
    for epoch in range(3):
        dataset.set_epoch(epoch)
        opened.clear()
        for index in sampler_of(dataset, 8):
            dataset[index]
        assert len(opened) == 12 and set(opened.values()) == {1}
        assert not nothing_held._shards, "what was read through is let go"
    for processes in (2, 4):
        for micros in of_processes(dataset, 8, 2, processes):
            opened.clear()
            monkeypatch.setattr(shards, "_cached", ShardCache())  # each process has its own
            for index in chain(*micros):
                dataset[index]
            assert set(opened.values()) == {1}


def test_few_shards_are_held_at_once(folder: Path) -> None:
    dataset = training_cases(packed(folder))
    cells = [cell["path"] for cell in dataset.rows["image"] if cell]
    sizes = [path.stat().st_size for path in folder.glob("train*")]
    held = ShardCache(most=3 * max(sizes))
    for path in np.random.default_rng(0).permutation(cells):
        row, _, address = path.removeprefix("row://").partition("::")
        assert held.image(address, int(row))[:4] == b"\x89PNG"
        assert sum(shard.images.nbytes for shard in held._shards.values()) <= held.most
    assert 2 <= len(held._shards) <= 4


def test_the_batches_are_those_of_the_files_bit_for_bit(loose: DataConfig, folder: Path) -> None:
    shards_first = training_cases(packed(folder))
    place = {name: number for number, name in enumerate(load_cohort(loose).split("train")["id"])}
    files = training_cases(loose, [place[name] for name in shards_first.rows["id"]])
    order = list(sampler_of(shards_first, 8))
    for epoch in range(2):
        shards_first.set_epoch(epoch), files.set_epoch(epoch)
        for index in order:
            a, b = shards_first[index], files[index]
            assert same(a, b), index


@pytest.fixture
def job(tiny_config: Config, folder: Path) -> Config:
    """A tiny run on the packed cohort: 72 training cases, a step of 8 in two parts."""
    config = with_train(
        tiny_config, "whole", batch_size=8, micro_batch_size=4, eval_steps=3, max_steps=14, keep_checkpoints=9
    )
    return replace(config, data=packed(folder, interleave_shards=4, dropout=DropoutConfig(0.2, 0.2, 0.1)))


def test_a_run_resumed_within_an_epoch_ends_the_same_and_reads_no_image_of_the_steps_it_passes_over(
    job: Config, monkeypatch, capsys
) -> None:
    read: list[str] = []
    image = ShardCache.image
    monkeypatch.setattr(ShardCache, "image", lambda self, a, row: read.append(a) or image(self, a, row))
    whole = trained(job)
    why = "the most that divide data.interleave_shards 4 and train.batch_size 8"
    assert f"packed: 12 shards, 4 interleaved ({why})" in capsys.readouterr().err
    assert 0 < next(row["epoch"] for row in read_log(RunFolder(job).log) if row["step"] == 6) < 1, "in mid-epoch"
    first = sum("train-" in address for address in read)
    read.clear()
    resumed = trained(job, str(RunFolder(job).checkpoints / "checkpoint-6"))
    for (name, a), b in zip(
        whole.model.trainable_parameters().items(), resumed.model.trainable_parameters().values(), strict=True
    ):
        assert torch.equal(a, b), name
    dataset = whole.training
    dataset.set_epoch(0)
    passed_over = list(sampler_of(dataset, 8, 4))[: 6 * 8]
    with_image = sum(dataset.rows[index]["image"] is not None for index in passed_over)
    assert first - sum("train-" in address for address in read) == with_image > 30


def test_a_whole_run_on_shards_tests_itself_as_on_files(job: Config) -> None:
    evaluation = replace(job.evaluation, batch_size=32, ablation=False)
    train(replace(job, train=replace(job.train, max_steps=2), evaluation=evaluation))
    metrics = read_json(RunFolder(job).metrics)
    assert metrics["facts"]["as_given"]["image_facts_right"]["value"] is not None
    assert metrics["cases"] == len(load_cohort(job.data).split("test"))
