"""`python -m vlm.data check` and `pack`: look at data before anybody trains on them, and make shards of them."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from vlm.atomic import replace_file
from vlm.errors import UserError, run_program
from vlm.plain import escaped


def main() -> None:
    parser = argparse.ArgumentParser(prog="vlm.data")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser(
        "check", help="look at a table and its images", description="What a careful colleague would say of a table."
    )
    check.set_defaults(run=run_check)
    check.add_argument("table", type=Path, help="CSV, TSV, Excel (.xlsx), JSON Lines or Parquet")
    check.add_argument("--images", type=Path, help="folder of the images; without it only the table is looked at")
    check.add_argument("--config", help="config whose data.table, data.split and vitals describe the table")
    for role in ("patient", "image", "split", "view", "source", "license"):
        check.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role}; else recognised by its name")
    check.add_argument("--encoding", metavar="NAME", help="encoding of the table's text, such as cp1251; else found")
    check.add_argument("--sheet", metavar="NAME", help="sheet of a workbook; else the only one that holds anything")
    check.add_argument("--uncertain", choices=["ignore", "positive", "negative"], help="what -1 means in a label")
    check.add_argument("--label", action="append", default=[], metavar="COLUMN", help="label column; may be repeated")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the findings for machines")
    check.add_argument("--html", type=Path, metavar="FILE", help="write a page with figures and thumbnails")
    pack = commands.add_parser(
        "pack",
        help="write a cohort as shards with the images inside",
        description="Write the cohort of a config as Parquet shards with the images inside. Options of the config, "
        "such as --data.root DIR, may follow.",
        allow_abbrev=False,
    )
    pack.set_defaults(run=run_pack)
    pack.add_argument("--config", required=True, help="YAML file whose data are packed")
    pack.add_argument("--output", required=True, metavar="DIR", help="new folder for the shards")
    pack.add_argument("--rows_per_shard", type=int, metavar="N", help="at most; 512 if not given")
    pack.add_argument("--image_side", type=int, metavar="PIXELS",
                      help="store pixels alone, at most so long a side; without it the files as they are")  # fmt: skip
    arguments, options = parser.parse_known_args()
    if options and arguments.run is run_check:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    sys.exit(arguments.run(arguments, options))


def run_pack(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Pack and say what was packed."""
    from vlm.config.parsing import parse_config
    from vlm.data.prepare.pack import PackOptions, pack

    if "://" in arguments.output:
        raise UserError(f"{arguments.output}: shards are written to a folder of this machine; copy it there when whole")
    config, _ = parse_config(["--config", arguments.config, *options])
    given = {"rows": arguments.rows_per_shard, "image_side": arguments.image_side}
    chosen = PackOptions(**{name: value for name, value in given.items() if value is not None})
    print(*map(escaped, pack(config.data, Path(arguments.output), chosen)), sep="\n")
    return 0


def run_check(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """Check and print; returns 1 if there are errors, else 0."""
    if arguments.images and importlib.util.find_spec("imagehash") is None:
        raise UserError("--images: copies are found with ImageHash; pip install 'clinical-vlm[check]'")
    from vlm.config.parsing import parse_config
    from vlm.data.ingest.read import TableOptions
    from vlm.data.prepare.check import CheckOptions, check_table
    from vlm.data.prepare.check_page import as_json, as_text, write_html
    from vlm.data.vitals.catalog import resolve_vitals

    given = {role: getattr(arguments, role) for role in ("patient", "image", "split", "view", "source", "license")}
    reading = TableOptions(arguments.encoding, arguments.sheet)
    options = CheckOptions(arguments.images, given, arguments.label, uncertain=arguments.uncertain, reading=reading)
    if arguments.config:
        data = parse_config(["--config", arguments.config])[0].data
        named = {"patient": data.table.patient, "image": data.table.image, "split": data.table.split}
        columns = {role: given[role] or named.get(role) for role in given}
        labels, vitals = arguments.label or data.table.labels, resolve_vitals(data.table.vitals)
        reading = TableOptions(arguments.encoding or data.table.encoding, arguments.sheet or data.table.sheet)
        reports = [section.column for section in data.table.report]
        uncertain = arguments.uncertain or data.table.uncertain
        options = CheckOptions(arguments.images, columns, labels, vitals, data.split, reports, uncertain, reading)
    result = check_table(arguments.table, options)
    print(as_text(result))
    if arguments.json:
        replace_file(arguments.json, as_json(result))
    if arguments.html:
        write_html(result, arguments.html)
        print(f"page: {arguments.html}")
    return int(result.worst == "error")


if __name__ == "__main__":
    run_program(main)
