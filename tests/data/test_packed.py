"""Packed data: the same cases and pictures out of shards, from any address, and how shards are written."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.canaries import CANARY, canaries_in, ward
from tests.cells import first_image
from tests.conftest import read_json
from tests.dicom_files import CANARY as DICOM_CANARY
from tests.packs import assert_same_cases, folder, loose, nothing_cached, packed, rows_by_id
from vlm.cli import main
from vlm.config import Config, DataConfig, SourceConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import load_pictures
from vlm.data.images.image import ImageSpec, decode_image, read_image, to_square
from vlm.data.ingest.phantom_words import TABLE
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed import shards
from vlm.data.packed.manifest import FILE, read_pack
from vlm.data.prepare.pack import PackOptions, pack, reduced
from vlm.errors import UserError

__all__ = ["folder", "loose", "nothing_cached", "ward"]  # fixtures


# ------------------------------------------------------------------------------------------- round trip


def test_a_packed_cohort_is_the_cohort(loose: DataConfig, folder: Path) -> None:
    here, there = load_cohort(loose), load_cohort(packed(folder))
    assert_same_cases(here, there)
    assert there.facts is not None and there.label_findings == TABLE.label_findings
    ours, theirs = rows_by_id(here), rows_by_id(there)
    for name in list(ours)[:40]:
        if cell := first_image(ours[name]):
            np.testing.assert_array_equal(
                read_image(cell["path"]), shards.read_packed(first_image(theirs[name])["path"])
            )
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
            *(
                load_pictures(cells, CaseSpec.fit(cohort, ImageSpec(32), 3))[0].picture
                for cells, cohort in ((row["images"], here), (theirs[name]["images"], there))
            )
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
        np.testing.assert_array_equal(shown, shards.read_packed(first_image(ours[case["id"]])["path"]))


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
    assert any(load_pictures(cells, spec) for cells in cohort.split("test")["images"])


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
