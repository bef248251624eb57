"""Parquet files that exhaust whoever reads them: small on the disk, large when unpacked, with footers that lie."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MIB = 1 << 20


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


def parquet_columns(path: Path) -> None:
    pq.write_table(pa.table({f"c{number}": [1] for number in range(15_000)}), path)


BOMBS: dict[str, tuple[str, Callable[[Path], None], str]] = {
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
    "very many columns of Parquet": ("t.parquet", parquet_columns, ""),
}  # fmt: skip
"""Name → the file, what writes it, the error; none where it is read."""
