"""Define the commands `check` and `pack`: check data before training, and write them as shards."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlm.atomic import replace_file
from vlm.errors import UserError, require
from vlm.plain import escaped

ROLES = ("patient", "image", "split", "view", "source", "license")
"""Roles of columns that an option can name."""


def check_options(parser: argparse.ArgumentParser) -> None:
    """Look for mistakes in a table and its images."""
    add = parser.add_argument
    add("table", type=Path, help="CSV, TSV, Excel (.xlsx), JSON Lines or Parquet")
    add("--images", type=Path, help="folder of the images; default: check the table alone")
    add("--config", help="config that describes the table (data.table, data.split, vitals)")
    for role in ROLES:
        add(f"--{role}", metavar="COLUMN", help=f"column of the {role}; default: recognise it by name")
    add("--encoding", metavar="NAME", help="text encoding, such as cp1251; default: detect it")
    add("--sheet", metavar="NAME", help="sheet of a workbook; default: the only one with content")
    add("--uncertain", choices=["ignore", "positive", "negative"], help="meaning of -1 in a label")
    add("--label", action="append", default=[], metavar="COLUMN", help="label column; may be repeated")
    add("--json", type=Path, metavar="FILE", help="write the findings as JSON")
    add("--html", type=Path, metavar="FILE", help="write an HTML page with figures and thumbnails")
    parser.set_defaults(run=run_check)


def pack_options(parser: argparse.ArgumentParser) -> None:
    """Write a cohort as Parquet shards with the images inside."""
    parser.add_argument("--config", required=True, help="config of the data to pack")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the shards")
    parser.add_argument("--rows_per_shard", type=int, metavar="N", help="most rows a shard; default: 512")
    parser.add_argument("--image_side", type=int, metavar="PIXELS",
                        help="store grey pixels of at most this side; default: the files as they are")  # fmt: skip
    parser.set_defaults(run=run_pack, takes_config=True)


def run_pack(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Pack and say what was packed."""
    from vlm.config.parsing import parse_config
    from vlm.data.prepare.pack import PackOptions, pack

    if "://" in arguments.output:
        raise UserError(f"{arguments.output}: shards are written to a folder of this machine; copy it there when whole")
    config, _ = parse_config(["--config", arguments.config, *options])
    given = {"rows": arguments.rows_per_shard, "image_side": arguments.image_side}
    chosen = PackOptions(**{name: value for name, value in given.items() if value is not None})
    print(*map(escaped, pack(config.data, Path(arguments.output), chosen)), sep="\n")


def run_check(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Check and print; returns 1 if there are errors, else 0."""
    if arguments.images:
        require("imagehash", "--images: copies are found with ImageHash")
    from vlm.config import DataConfig, TableConfig
    from vlm.config.parsing import parse_config
    from vlm.data.ingest.read import TableOptions
    from vlm.data.prepare.check import CheckOptions, check_table
    from vlm.data.prepare.check_page import as_json, as_text, write_html
    from vlm.data.vitals.catalog import resolve_vitals

    data = DataConfig(table=TableConfig(image=None))
    if arguments.config:
        data = parse_config(["--config", arguments.config])[0].data
    table = data.table
    columns = {role: getattr(arguments, role) or getattr(table, role, None) for role in ROLES}
    labels, vitals = arguments.label or table.labels, resolve_vitals(table.vitals)
    reports, uncertain = [section.column for section in table.report], arguments.uncertain or table.uncertain
    reading = TableOptions(arguments.encoding or table.encoding, arguments.sheet or table.sheet)
    further = [item.column for item in table.study_images]
    options = CheckOptions(arguments.images, columns, labels, vitals, data.split, reports, uncertain, reading, further,
                           table.image_separator)  # fmt: skip
    result = check_table(arguments.table, options)
    print(as_text(result))
    if arguments.json:
        replace_file(arguments.json, as_json(result))
    if arguments.html:
        write_html(result, arguments.html)
        print(f"page: {arguments.html}")
    return int(result.worst == "error")
