"""Tables that were made to exhaust whoever reads them: each costs bounded memory and ends in one line."""

import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.data.ingest.read import read_table
from vlm.data.size_limits import LONGEST_ROW
from vlm.errors import UserError

MIB = 1 << 20
MOST = 400
"""MiB above the import, for any of them."""
SECONDS = 60

WATCHED = """
import json, os, resource, sys
from pathlib import Path
from vlm.data.ingest.read import read_chunks, read_table
from vlm.errors import UserError

def peak():
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024

def seconds():  # of the processor: the machine may do much else
    return sum(os.times()[:4])

for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        before, start, said = peak(), seconds(), ""
        try:
            rows = sum(len(chunk) for chunk in read_chunks(Path(name)))
        except UserError as error:
            rows, said = -1, str(error)
        print(json.dumps([name, rows, said, peak() - before, seconds() - start]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def gz(path: Path, *pieces: tuple[bytes, int]) -> None:
    """Write each piece as often as it says, without holding them all."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece, times in pieces:
            for _ in range(times):
                file.write(piece)


def endless_line(path: Path) -> None:
    gz(path, (b"id,note\n1,", 1), (b"a" * MIB, 60))


def endless_quote(path: Path) -> None:
    gz(path, (b'id,note\n1,"', 1), (b"a,b\n" * (MIB // 4), 60))


def endless_rows(path: Path) -> None:
    gz(path, (b"id,note\n", 1), (b"1,2\n" * (MIB // 4), 60))


def endless_blank_lines(path: Path) -> None:
    gz(path, (b"id,note\n", 1), (b"\n" * MIB, 60))


def endless_header(path: Path) -> None:
    gz(path, (b"a," * (MIB // 2), 60))


def plain_endless_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"id,note\n1,")
        for _ in range(20):
            file.write(b"a" * MIB)


def plain_endless_quote(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'id,note\n1,"')
        for _ in range(20):
            file.write("é\n".encode() * (MIB // 3))


def many_columns(path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(200_000))
    with path.open("w") as file:
        file.write(names + "\n")
        for _ in range(50):
            file.write("," * 199_998 + ",1\n")


def legacy_letters(path: Path) -> None:
    """Nothing but distinct words of an old encoding."""
    with path.open("wb") as file:
        file.write(b"id,note\n")
        for number in range(200_000):
            file.write(f"{number},Größe{number}ä Übelkeit{number}ß\n".encode("cp1252"))


def dictionary_of_one_giant(path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * (64 * MIB)]))
    pq.write_table(pa.table({"id": range(5000), "note": texts}), path, compression="zstd")


def dictionary_of_one_large(path: Path) -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * (6 * MIB)]))
    pq.write_table(pa.table({"id": range(5000), "note": texts}), path, compression="zstd")


def lie(path: Path) -> None:
    """Let the footer say that all columns and groups unpack to 100 bytes."""
    data, metadata = path.read_bytes(), pq.read_metadata(path)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, group = data[start:], metadata.row_group(0)
    sizes = [group.column(place).total_uncompressed_size for place in range(group.num_columns)]
    for size in [group.total_byte_size, *sizes]:
        if size > MIB:
            true = varint(2 * size)
            footer = footer.replace(true, varint(200, len(true)))
    path.write_bytes(data[:start] + footer)
    group = pq.read_metadata(path).row_group(0)
    assert max(group.column(place).total_uncompressed_size for place in range(group.num_columns)) < MIB


def varint(value: int, length: int = 0) -> bytes:
    """A number as Thrift has it, in at least so many bytes."""
    groups = []
    while value or len(groups) < max(length, 1):
        groups.append(value & 0x7F)
        value >>= 7
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def liar(kind: str, version: str, **options: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        giant = "a" * (300 * MIB)
        note = [{"bytes": giant.encode(), "path": "x.png"}] if kind == "image" else [giant]
        table = pa.table({"id": [1], kind: note})
        pq.write_table(table, path, compression="zstd", data_page_version=version, write_statistics=False, **options)
        lie(path)

    return write


def liar_about_encoding(path: Path) -> None:
    delta_strings(path)
    data = path.read_bytes()
    assert data.count(b"\x19\x25\x06\x0e") == 1  # RLE and DELTA_BYTE_ARRAY
    path.write_bytes(data.replace(b"\x19\x25\x06\x0e", b"\x19\x25\x06\x00"))


def delta_strings(path: Path) -> None:
    pq.write_table(pa.table({"note": ["a" * (2 * MIB)] * 200}), path, use_dictionary=False, compression="zstd",
                   column_encoding={"note": "DELTA_BYTE_ARRAY"})  # fmt: skip


def compressed_strings(path: Path) -> None:
    pq.write_table(pa.table({"note": ["a" * MIB] * 200}), path, use_dictionary=False, compression="gzip")


def run_lengths(path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), 30_000_000), pa.array(["a"]))
    pq.write_table(pa.table({"note": column}), path, row_group_size=30_000_000)


def nested_lists(path: Path) -> None:
    giant = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * (30 * MIB)]))
    column = pa.ListArray.from_arrays(pa.array(range(5001), pa.int32()), giant)
    pq.write_table(pa.table({"id": range(5000), "note": column}), path, compression="none")


def image_of_one_giant(path: Path, size: int = 64, rows: int = 5000) -> None:
    data = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([b"\xff" * (size * MIB)]))
    images = pa.StructArray.from_arrays([data, pa.array(["a.png"] * rows)], names=["bytes", "path"])
    pq.write_table(pa.table({"id": range(rows), "image": images}), path, compression="zstd")


def image_of_one_large(path: Path) -> None:
    image_of_one_giant(path, 16)


def bytes_of_one_large(path: Path) -> None:
    data = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array([b"\xff" * (16 * MIB)]))
    pq.write_table(pa.table({"id": range(5000), "image": data}), path, compression="zstd")


def image_prefixes(path: Path) -> None:
    images = pa.array([{"bytes": b"\xff" * (2 * MIB), "path": None}] * 200)
    pq.write_table(pa.table({"image": images}), path, use_dictionary=False, compression="zstd",
                   column_encoding={"image.bytes": "DELTA_BYTE_ARRAY", "image.path": "PLAIN"})  # fmt: skip


def image_names_of_one_large(path: Path) -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["a" * (9 * MIB)]))
    images = pa.StructArray.from_arrays([pa.array([b"\xff"] * 5000), names], names=["bytes", "path"])
    pq.write_table(pa.table({"image": images}), path, compression="none")


def one_width(path: Path) -> None:
    """Arrow writes these out, however often one stands there."""
    pq.write_table(pa.table({"note": pa.array([b"a" * MIB] * 700, pa.binary(MIB))}), path, compression="zstd")


def tensors(path: Path) -> None:
    values = pa.FixedSizeListArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), 240 * MIB), 20 * MIB)
    kind = pa.fixed_shape_tensor(pa.int8(), (20 * MIB,))
    pq.write_table(pa.table({"id": range(12), "note": pa.ExtensionArray.from_storage(kind, values)}), path)


def json_of_arrow(path: Path) -> None:
    values = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['"' + "a" * (30 * MIB) + '"']))
    pq.write_table(pa.table({"note": values.take(pa.array([0] * 8))}), path, compression="zstd")


def views(path: Path) -> None:
    pq.write_table(pa.table({"note": pa.array(["a" * (20 * MIB)] * 10, pa.string_view())}), path, compression="zstd")


def wide_texts(path: Path) -> None:
    columns = {f"c{number}": ["a" * (5 * MIB)] for number in range(10)}
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)


def gzip_name(path: Path) -> None:
    packed = gzip.compress(b"id,note\n1,2\n", mtime=0)
    path.write_bytes(packed[:3] + b"\x08" + packed[4:10] + b"n" * (30 * MIB) + b"\0" + packed[10:])


def gzip_zeros(path: Path) -> None:
    path.write_bytes(gzip.compress(b"id,note\n1,2\n") + bytes(30 * MIB))


def parquet_columns(path: Path) -> None:
    pq.write_table(pa.table({f"c{number}": [1] for number in range(15_000)}), path)


def json_endless_line(path: Path) -> None:
    gz(path, (b'{"id": "', 1), (b"a" * MIB, 60))


def json_deep(path: Path) -> None:
    path.write_bytes(b'{"id": ' + b"[" * (4 * MIB))


def json_objects(path: Path) -> None:
    path.write_bytes(b'{"id": [' + b"{}," * (2 * MIB) + b"{}]}\n")


def json_keys(path: Path) -> None:
    path.write_text("".join(json.dumps({f"k{number}": 1}) + "\n" for number in range(60_000)))


def json_number(path: Path) -> None:
    path.write_text('{"id": 1' + "0" * (4 * MIB) + "}\n")


def workbook_of(sheet: bytes, times: int, end: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        book = openpyxl.Workbook()
        book.active.append(["id"])
        book.save(path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in parts.items():
                if name != "xl/worksheets/sheet1.xml":
                    archive.writestr(name, data)
            with archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as part:
                part.write(HEAD)
                for _ in range(times):
                    part.write(sheet)
                part.write(end)

    return write


HEAD = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
END = b"</sheetData></worksheet>"
WIDE_ROW = b"<row>" + b"<c><v>1</v></c>" * 500_000 + b"</row>"
BOMB = b"""<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e "&d;&d;&d;&d;&d;&d;&d;">
<!ENTITY f "&e;&e;&e;&e;&e;">]>"""


def workbook_laughs(path: Path) -> None:
    workbook_of(b"", 0, END)(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            cell = b'<row r="1"><c r="A1" t="str"><v>' + b"&f;" * 100 + b"</v></c></row>"
            archive.writestr(name, BOMB + HEAD + cell + END if name.endswith("sheet1.xml") else data)


def workbook_merged(path: Path) -> None:
    end = END.replace(b"</worksheet>", b'<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells></worksheet>')
    workbook_of(b'<row r="1"><c r="A1"><v>1</v></c></row>', 1, end)(path)


def workbook_of_small_areas(path: Path) -> None:
    areas = b"".join(b'<mergeCell ref="C%d:C%d"/>' % (row, row + 1) for row in range(1, 40_000, 2))
    rows = b"".join(b'<row r="%d"><c r="A%d"><v>1</v></c></row>' % (row, row) for row in range(1, 40_001))
    end = END.replace(b"</worksheet>", b"<mergeCells>" + areas + b"</mergeCells></worksheet>")
    workbook_of(rows, 1, end)(path)


FAR_ROW = b'<row r="1"><c r="A1"><v>1</v></c></row><row r="2000000000"><c r="A2000000000"><v>1</v></c></row>'
NO_TABLE = "that is no table"
ATTACKS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "one endless line": ("t.csv.gz", endless_line, "unpacks to more than 100 times its size"),
    "one endless quote": ("t.csv.gz", endless_quote, "unpacks to more than 100 times its size"),
    "endless rows": ("t.csv.gz", endless_rows, "unpacks to more than 100 times its size"),
    "endless blank lines": ("t.tsv.gz", endless_blank_lines, "unpacks to more than 100 times its size"),
    "endless header": ("t.txt.gz", endless_header, "unpacks to more than 100 times its size"),
    "a plain endless line": ("t.csv", plain_endless_line, "line 2 is longer than 8 million characters"),
    "a plain endless quote": ("t.csv", plain_endless_quote, "is longer than 8 million characters"),
    "very many columns": ("t.csv", many_columns, ""),
    "distinct words": ("t.csv", legacy_letters, ""),
    "a dictionary of one giant": ("t.parquet", dictionary_of_one_giant, "column note unpacks to 64 MiB"),
    "a dictionary of one large": ("t.parquet", dictionary_of_one_large, "its text is more than 1,000 times as long"),
    "prefixes of prefixes": ("t.parquet", delta_strings, "its text is more than 1,000 times as long"),
    "compressed texts": ("t.parquet", compressed_strings, "column note unpacks to 200 MiB"),
    "rows out of nothing": ("t.parquet", run_lengths, "30,000,000 rows in"),
    "an image of one giant": ("t.parquet", image_of_one_giant, "column image.bytes unpacks to 64 MiB"),
    "an image of one large": ("t.parquet", image_of_one_large, "its text is more than 1,000 times as long"),
    "bytes of one large": ("t.parquet", bytes_of_one_large, "its text is more than 1,000 times as long"),
    "image prefixes": ("t.parquet", image_prefixes, "its text is more than 1,000 times as long"),
    "names of one large": ("t.parquet", image_names_of_one_large, "column image: a cell is longer than 8 million"),
    "a giant in lists": ("t.parquet", nested_lists, ""),
    "a giant of one width": ("t.parquet", one_width, "its text is more than 1,000 times as long"),
    "tensors": ("t.parquet", tensors, ""),
    "JSON of Arrow": ("t.parquet", json_of_arrow, "column note: a cell is longer than 8 million characters"),
    "a dictionary that the footer hides": ("t.parquet", liar("note", "1.0"), "column note unpacks to 300 MiB"),
    "a text that the footer hides": ("t.parquet", liar("note", "1.0", use_dictionary=False), "note unpacks to 300 MiB"),
    "the same in pages of version 2": ("t.parquet", liar("note", "2.0", use_dictionary=False), "unpacks to 300 MiB"),
    "an image that the footer hides": ("t.parquet", liar("image", "1.0"), "column image.bytes unpacks to 300 MiB"),
    "an encoding that the footer hides": ("t.parquet", liar_about_encoding, "column note has another encoding than"),
    "views of a giant": ("t.parquet", views, "column note: a cell is longer than 8 million characters"),
    "a row of long texts": ("t.parquet", wide_texts, "a row is longer than 8 million characters"),
    "a gzip with an endless name": ("t.csv.gz", gzip_name, "its gzip header, or what stands behind its data"),
    "a gzip with endless zeros": ("t.csv.gz", gzip_zeros, "its gzip header, or what stands behind its data"),
    "very many columns of Parquet": ("t.parquet", parquet_columns, ""),
    "a JSON line without end": ("t.jsonl.gz", json_endless_line, "line 1 is longer than 8 million characters"),
    "deep JSON": ("t.jsonl", json_deep, "row 1 is no JSON object"),
    "very many objects": ("t.jsonl", json_objects, ""),
    "a key a row": ("t.ndjson", json_keys, NO_TABLE),
    "a giant number": ("t.jsonl", json_number, "row 1 is no JSON object"),
    "a workbook that unfolds": ("t.xlsx", workbook_of(b" " * MIB, 60, END), "unpacks to more than 100 times"),
    "a row of very many cells": ("t.xlsx", workbook_of(WIDE_ROW, 1, END), "more than 16,384 columns"),
    "entities of entities": ("t.xlsx", workbook_laughs, "cannot read the workbook"),
    "rows out of nothing but a number": ("t.xlsx", workbook_of(FAR_ROW, 1, END), "more than 1,048,576 rows"),
    "very many merged areas": ("t.xlsx", workbook_of_small_areas, ""),
    "one merged sheet": ("t.xlsx", workbook_merged, "more than 1,000,000 merged cells; unmerge them"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, float, float]]:
    """Name of the attack → rows or -1, the error, MiB above the import, seconds; all in one process's children."""
    files = {}
    for number, (name, (file, write, _)) in enumerate(ATTACKS.items()):
        path = tmp_path_factory.mktemp(f"attack{number}") / file
        write(path)
        files[str(path)] = name
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, *files], capture_output=True, text=True, timeout=500, check=True
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    return {files[path]: tuple(outcome) for path, *outcome in lines}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_bounded_memory_and_time(name: str, outcomes) -> None:
    assert name in outcomes, "the process died of it"
    rows, error, memory, seconds = outcomes[name]
    message = ATTACKS[name][2]
    assert memory < MOST and seconds < SECONDS
    assert message in error and "\n" not in error and len(error) < 700
    assert (rows == -1) == bool(message), "what is no bomb is read"


def test_texts_below_the_limits_are_read(tmp_path: Path) -> None:
    long = "a" * (LONGEST_ROW // 2)
    (tmp_path / "t.csv").write_text(f"id,note\n1,{long}\n")
    assert read_table(tmp_path / "t.csv")["note"].tolist() == [long]
    pq.write_table(pa.table({"note": [long, "b"]}), tmp_path / "t.parquet", compression="none")
    assert read_table(tmp_path / "t.parquet")["note"].tolist() == [long, "b"]
    rows = "".join(f"{number},0,0,1,0,No acute finding in either lung.\n" for number in range(300_000))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(("id,a,b,c,d,note\n" + rows).encode()))
    assert len(read_table(tmp_path / "t.csv.gz")) == 300_000, "a table of labels and one sentence is no bomb"
    many = pa.array(["No acute finding."] * 300_000).dictionary_encode()
    pq.write_table(pa.table({"id": range(300_000), "note": many}), tmp_path / "t.parquet")
    assert set(read_table(tmp_path / "t.parquet")["note"]) == {"No acute finding."}


def test_a_cell_beyond_the_limit_is_named_by_its_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "note": ["a" * (LONGEST_ROW + 1)]}), tmp_path / "t.parquet", compression="none")
    with pytest.raises(UserError, match="column note: a cell is longer than 8 million characters"):
        read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("value", "kind"), [(2**31 - 1, pa.date32()), (2**62, pa.duration("s")), (2**62, pa.timestamp("us"))]
)
def test_a_time_that_python_has_not_is_named_by_its_column(value: int, kind: pa.DataType, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "seen": pa.array([value], kind)}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: cannot read the table: column seen: "):
        read_table(tmp_path / "t.parquet")


def test_a_device_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="no such table"):
        read_table(tmp_path / "t.csv")
