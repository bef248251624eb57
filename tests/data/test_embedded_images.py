"""Images inside a Parquet table: what a model sees of them is what it sees of the same files."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cells import first_images
from tests.conftest import table_config
from vlm.adapter import save
from vlm.config import DataConfig, TableConfig
from vlm.data.blank_images import check_sample
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset, read_square
from vlm.data.embedded import EmbeddedImage
from vlm.data.fingerprint import contents_fingerprint
from vlm.data.images.image import ImageSpec
from vlm.data.images.store import EmbeddedReader
from vlm.data.ingest.read import TableOptions, read_chunks, read_table
from vlm.data.ingest.sources import load_cohort
from vlm.data.ingest.uninformative import cohort_notes
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.data.prepare.pack import PackOptions, pack
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.inference.many import TableColumns, TableJob
from vlm.inference.on_ray import Drafter
from vlm.inference.rows import Row

IMAGE = {
    "hub": datasets.Image(decode=False),
    "bytes": datasets.Value("binary"),
    "large": datasets.Value("large_binary"),
}


def embed(table_root: Path, root: Path, form: str = "hub", shards: int = 0) -> Path:
    """The cases of `table_root` in Parquet, their images inside; a file, or a folder of some."""
    frame = pd.read_csv(table_root / "cases.csv", dtype=str, keep_default_na=False)
    files = [(table_root / "images" / name).read_bytes() if name else None for name in frame["image"]]
    hub = [{"bytes": data, "path": name} if data else None for data, name in zip(files, frame["image"], strict=True)]
    cells = hub if form == "hub" else files
    rows = datasets.Dataset.from_dict({**frame.to_dict("list"), "image": cells})
    rows = rows.cast_column("image", IMAGE[form])
    root.mkdir(exist_ok=True)
    if not shards:
        rows.to_parquet(root / "cases.parquet", batch_size=5)  # groups of 5 rows
        return root / "cases.parquet"
    (root / "shards").mkdir()
    for shard in range(shards):
        rows.shard(shards, shard, contiguous=True).to_parquet(root / "shards" / f"part-{shard}.parquet")
    return root / "shards"


def config(table: Path) -> DataConfig:
    described = table_config(table.parent)
    return replace(described, table=replace(described.table, file=table.name))


def pictures(cohort) -> list[np.ndarray | None]:
    spec = ImageSpec(size=32)
    return [read_square(cell["path"], spec) if cell else None for cell in first_images(cohort.dataset)]


@pytest.mark.parametrize(("form", "shards"), [("hub", 0), ("bytes", 0), ("large", 0), ("hub", 3)])
def test_training_sees_the_picture_of_the_file(form: str, shards: int, table_root: Path, tmp_path: Path) -> None:
    files = load_cohort(table_config(table_root))
    inside = load_cohort(config(embed(table_root, tmp_path / "data", form, shards)))
    assert not (tmp_path / "data" / "images").exists()
    assert inside.dataset["id"] == files.dataset["id"] and len(inside.dataset) == 24
    spec = CaseSpec.fit(files, ImageSpec(32), 3)
    one, other = (CaseDataset(cohort.dataset, spec, cohort.sections) for cohort in (files, inside))
    seen = 0
    for place in np.random.default_rng(0).permutation(24).tolist():
        a, b = one[place], other[place]
        assert a["report"] == b["report"] and a["has_image"] == b["has_image"]
        np.testing.assert_array_equal(a["pixel_values"], b["pixel_values"])
        seen += bool(a["has_image"])
    assert seen == 21
    assert check_sample(inside.dataset, ImageSpec(32)) == []


def test_the_fingerprint_holds_the_bytes_and_not_the_place(table_root: Path, tmp_path: Path) -> None:
    table = embed(table_root, tmp_path / "a")
    first = contents_fingerprint(load_cohort(config(table)))
    assert first == contents_fingerprint(load_cohort(config(embed(table_root, tmp_path / "b", shards=2))))
    rows = pq.read_table(table).to_pylist()
    rows[3]["image"]["bytes"] += b"\0"
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(table)), table)
    assert first != contents_fingerprint(load_cohort(config(table)))


def write(path: Path, images: pa.Array, **more: list) -> Path:
    columns = {"id": [str(number) for number in range(len(images))], "image": images, **more}
    pq.write_table(pa.table(columns), path)
    return path


def load(path: Path) -> list[dict | None]:
    described = TableConfig(file=path.name, image="image", images="images", id="id", vitals=[])
    return first_images(load_cohort(DataConfig(source="table", root=str(path.parent), table=described)).dataset)


KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_what_has_no_bytes_is_a_name_and_what_has_neither_no_image(table_root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(table_root / "images")
    data = (table_root / "images" / "1.png").read_bytes()
    cells = [{"bytes": None, "path": "0.PNG"}, {"bytes": data, "path": "../../secret.png"}, None,
             {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": b"", "path": ""}]  # fmt: skip
    images = load(write(tmp_path / "t.parquet", pa.array(cells, KIND)))
    assert images[2:] == [None] * 4
    spec = ImageSpec(32)
    for number in (0, 1):
        expected = read_square(str(table_root / "images" / f"{number}.png"), spec)
        np.testing.assert_array_equal(read_square(images[number]["path"], spec), expected)
    nameless = pa.array([{"bytes": data, "path": None}])  # Arrow takes such paths for a column of nothing
    (cell,) = load(write(tmp_path / "t.parquet", nameless))
    np.testing.assert_array_equal(read_square(cell["path"], spec), expected)
    bare = load(write(tmp_path / "t.parquet", pa.array([b"0.png", data, b"", None], pa.binary())))
    assert bare[0]["path"] == str(table_root / "images" / "0.png") and bare[2:] == [None, None]
    np.testing.assert_array_equal(read_square(bare[1]["path"], spec), expected)


@pytest.mark.parametrize(("cell", "message"), [
    ({"bytes": b"", "path": "a.png"}, r"t\.parquet: row 3: the image has a name and 0 bytes"),
    ({"bytes": None, "path": "../x.png"}, r"t\.parquet: row 3: image '\.\./x\.png' leads outside"),
    ({"bytes": None, "path": "absent.png"}, r"t\.parquet: row 3: no image file .*absent\.png"),
])  # fmt: skip
def test_a_faulty_cell_is_named_by_its_row(cell: dict, message: str, table_root: Path, tmp_path: Path) -> None:
    good = {"bytes": (table_root / "images" / "0.png").read_bytes(), "path": "0.png"}
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path / "t.parquet", pa.array([good, cell], KIND)))
    assert "PNG" not in str(caught.value).replace("absent.png", "")


def test_pixels_that_cannot_be_read_are_named_by_their_row(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pa.array([{"bytes": b"\x89PNG\r\n\x1a\nsecret", "path": "in/a.png"}], KIND))
    (cell,) = load(path)
    with pytest.raises(UserError, match=r"t\.parquet: row 2: a\.png: not a readable image") as caught:
        read_square(cell["path"], ImageSpec(32))
    assert "secret" not in str(caught.value)


def test_images_are_no_text_label_or_vital(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pa.array([{"bytes": b"\x89PNG", "path": "7"}], KIND))
    for role in ({"id": "image"}, {"id": "id", "context": "image"}, {"id": "id", "labels": ["image"]}):
        described = TableConfig(file=path.name, vitals=[], **role)
        with pytest.raises(UserError, match="row 2: image: ") as caught:
            load_cohort(DataConfig(source="table", root=str(tmp_path), table=described))
        assert "PNG" not in str(caught.value)


def test_equal_images_are_known_as_copies(table_root: Path, tmp_path: Path) -> None:
    data = [(table_root / "images" / f"{number}.png").read_bytes() for number in (0, 1, 0)]
    blank = pa.array([*data, blank_png()], pa.binary())
    path = write(tmp_path / "t.parquet", blank, patient=["a", "b", "c", "d"])
    described = TableConfig(file=path.name, image="image", id="id", vitals=[])
    cohort = load_cohort(DataConfig(source="table", root=str(tmp_path), table=described))
    assert any(note.startswith("1 row repeats an earlier one") for note in cohort_notes(cohort))
    result = check_table(path, CheckOptions())
    assert [(pair.first, pair.second, pair.exact) for pair in result.pairs] == [(0, 2, True)]
    assert [picture.blank for picture in result.pictures] == [False, False, False, True]
    assert {notice.check for notice in result.notices} >= {"copies", "blank"}


def blank_png() -> bytes:
    import cv2

    return cv2.imencode(".png", np.full((40, 40), 7, np.uint8))[1].tobytes()


def test_check_says_of_images_inside_what_it_says_of_files(table_root: Path, tmp_path: Path) -> None:
    files = check_table(table_root / "cases.csv", CheckOptions(table_root / "images"))
    inside = check_table(embed(table_root, tmp_path / "data"), CheckOptions())
    assert [(p.row, p.digest, p.bits, p.blank) for p in inside.pictures] == [
        (p.row, p.digest, p.bits, p.blank) for p in files.pictures
    ]
    assert len(inside.pictures) == 21 and not [n for n in inside.notices if n.check == "unreadable"]


def test_a_pack_of_images_inside_is_that_of_the_files(table_root: Path, tmp_path: Path) -> None:
    pack(table_config(table_root), tmp_path / "one", PackOptions())
    pack(config(embed(table_root, tmp_path / "data")), tmp_path / "other", PackOptions())
    shards = sorted(path.name for path in (tmp_path / "one").glob("*.parquet"))
    assert shards and [(tmp_path / "other" / name).read_bytes() for name in shards] == [
        (tmp_path / "one" / name).read_bytes() for name in shards
    ]


def drafts(job: TableJob, engine: ReportEngine, adapter: Path, resume: bool = False) -> list[dict]:
    job.run(engine, job.check(adapter, engine.model.spec.schema, resume))
    return rounded(job.output.read_text().splitlines())


def rounded(texts: Iterable[str]) -> list[dict]:
    """Parse lines, without the last digits of probabilities, which depend on where in memory a batch lies."""
    lines = [json.loads(text) for text in texts]
    for line in lines:
        line["probabilities"] = {name: round(value, 6) for name, value in line.get("probabilities", {}).items()}
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(("form", "shards"), [("hub", 0), ("bytes", 3)])
def test_a_table_is_drafted_as_from_files(form, shards, tiny_model, table_root, tmp_path) -> None:
    adapter, engine = save(tiny_model, tmp_path / "adapter"), ReportEngine(tiny_model)
    columns = TableColumns(id="case", context="findings")
    files = TableJob(table_root / "cases.csv", tmp_path / "files.jsonl", table_root / "images", columns, 3, 6)
    table = embed(table_root, tmp_path / "data", form, shards)
    inside = replace(files, table=table, output=tmp_path / "inside.jsonl", images=tmp_path)
    expected = drafts(files, engine, adapter)
    assert drafts(inside, engine, adapter) == expected and not any("error" in line for line in expected)
    whole = inside.output.read_bytes()
    inside.output.write_bytes(whole[: len(whole) // 2])
    assert drafts(inside, engine, adapter, resume=True) == expected
    shard = sorted(table.glob("*"))[0] if table.is_dir() else table
    rows = pq.read_table(shard)
    place = rows.column_names.index("image")
    pq.write_table(rows.set_column(place, rows.field("image"), rows["image"].take(list(range(len(rows)))[::-1])), shard)
    with pytest.raises(UserError, match="the table changed since its first drafts"):
        inside.check(adapter, tiny_model.spec.schema, resume=True)


def test_a_window_for_another_process_holds_no_bytes(tiny_model, table_root, tmp_path) -> None:
    adapter, engine = save(tiny_model, tmp_path / "adapter"), ReportEngine(tiny_model)
    table = embed(table_root, tmp_path / "data")
    job = TableJob(table, tmp_path / "out.jsonl", tmp_path, TableColumns(id="case", context="findings"), 3, 6)
    rows = list(job.rows(tiny_model.spec.schema))
    window = json.dumps([asdict(row) for row in rows])
    assert len(window) < 20_000 and [Row.from_dict(row) for row in json.loads(window)] == rows
    worker = Drafter.__new__(Drafter)
    worker.job, worker.refused, worker.engine = job, "", engine
    lines = [json.loads(text) for text in worker({"rows": [window]})["lines"]]
    assert [rounded(map(json.dumps, some)) for some in lines] == [drafts(job, engine, adapter)]


def test_a_broken_image_inside_costs_its_own_report_alone(tiny_model, table_root, tmp_path) -> None:
    adapter, engine = save(tiny_model, tmp_path / "adapter"), ReportEngine(tiny_model)
    data = (table_root / "images" / "0.png").read_bytes()
    cells = [{"bytes": data, "path": "0.png"}, {"bytes": b"\x89PNG\r\n\x1a\nsecret", "path": "x/b.png"},
             {"bytes": b"", "path": "c.png"}, {"bytes": None, "path": "../d.png"}, None]  # fmt: skip
    table = write(tmp_path / "t.parquet", pa.array(cells, KIND), glucose=["7"] * 5)
    lines = drafts(TableJob(table, tmp_path / "out.jsonl", tmp_path, TableColumns("image"), 2, 4), engine, adapter)
    errors = [line.get("error", "") for line in lines]
    assert not errors[0] and not errors[4] and "no image given" in lines[4]["warnings"]
    assert errors[1].startswith(f"{table}: row 3: b.png: not a readable image") and "secret" not in errors[1]
    assert errors[2].startswith(f"{table}: row 4: c.png: the image has a name and 0 bytes")
    assert "leads outside" in errors[3]


def test_a_name_that_looks_like_a_reference_is_a_name(tiny_model, table_root, tmp_path) -> None:
    """Nothing that a table's text says may lead to another file."""
    adapter, engine = save(tiny_model, tmp_path / "adapter"), ReportEngine(tiny_model)
    table = tmp_path / "t.csv"
    name = f"embedded://{'0' * 64}/0+40@{table}::x"
    table.write_text(f"id,image,glucose\n1,{name},7\n")
    (line,) = drafts(TableJob(table, tmp_path / "out.jsonl", tmp_path, TableColumns(), 2, 4), engine, adapter)
    assert "leads outside" in line["error"]
    described = TableConfig(file="t.csv", image="image", images=".", vitals=["glucose"])
    with pytest.raises(UserError, match="leads outside"):
        load_cohort(DataConfig(source="table", root=str(tmp_path), table=described))


def test_frames_hold_no_bytes_and_rows_are_read_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [b"\xff" + rng.bytes(int(size)) for size in rng.integers(1, 400_000, 200)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": files, "id": range(200)}), path, row_group_size=90)
    frame = read_table(path)
    cells = list(frame["image"])
    assert all(isinstance(cell, EmbeddedImage) for cell in cells) and len(list(read_chunks(path))) > 1
    assert [cell.size for cell in cells] == list(map(len, files)) and "\\x" not in repr(cells[0])
    reader = EmbeddedReader()
    for order in (range(200), rng.permutation(200)[:40]):
        assert all(reader.read(cells[place], "t") == files[place] for place in order)
    pq.write_table(pa.table({"image": [b"\xff"], "id": [1]}), path)
    with pytest.raises(UserError, match=r"^t: the table changed while it was read"):
        EmbeddedReader().read(cells[3], "t")
    with pytest.raises(UserError, match=r"^t: the image is larger than 512 MiB"):
        reader.read(replace(cells[0], size=(512 << 20) + 1), "t")


def test_a_batch_of_rows_may_span_row_groups(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [{"bytes": b"\xff" + rng.bytes(3000), "path": f"{place}.jpg"} for place in range(600)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(files, kind)}), tmp_path / "t.parquet", row_group_size=250)
    cells = read_table(tmp_path / "t.parquet")["image"].tolist()
    reader = EmbeddedReader()
    assert all(reader.read(cell, "t") == file["bytes"] for cell, file in zip(cells, files, strict=True))


def test_text_that_was_written_as_bytes_stays_text(tmp_path: Path) -> None:
    column = pa.array([b"P1 seen", b"BM", b"scan.png", "Größe".encode(), b"P2\n2 2\n255\n0 1 2 3\n", b"\xff", None])
    write(tmp_path / "t.parquet", column)
    read = read_table(tmp_path / "t.parquet")["image"].tolist()
    assert read[:4] == ["P1 seen", "BM", "scan.png", "Größe"] and read[6] is None
    assert [cell.size for cell in read[4:6]] == [19, 1]


@pytest.mark.parametrize("change", [{"encoding": "utf-8"}, {"sheet": "Cases"}])
def test_no_run_goes_on_with_other_options_of_the_table(change, tiny_model, table_root, tmp_path) -> None:
    adapter = save(tiny_model, tmp_path / "adapter")
    job = TableJob(
        table_root / "cases.csv", tmp_path / "out.jsonl", table_root / "images", batch_size=8, max_new_tokens=2
    )
    drafts(job, ReportEngine(tiny_model), adapter)
    other = replace(job, options=TableOptions(**change))
    with pytest.raises(UserError, match=f"was begun with another {next(iter(change))}; name another --output"):
        other.check(adapter, tiny_model.spec.schema, resume=True)
    stamp = json.loads(job.metadata_file.read_text())
    del stamp["encoding"], stamp["sheet"]  # as an earlier version wrote it
    job.metadata_file.write_text(json.dumps(stamp))
    assert job.check(adapter, tiny_model.spec.schema, resume=True)
