"""`python -m vlm.data check TABLE --images DIR`: what a careful colleague would say before anybody trains on it."""

import argparse
import importlib.util
import sys
from pathlib import Path

from vlm.errors import UserError, run_program


def main() -> None:
    parser = argparse.ArgumentParser(prog="vlm.data")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="look at a table and its images", description=__doc__)
    check.add_argument("table", type=Path, help="CSV, TSV or Parquet")
    check.add_argument("--images", type=Path, help="folder of the images; without it only the table is looked at")
    check.add_argument("--config", help="config whose data.table, data.split and vitals describe the table")
    for role in ("patient", "image", "split", "view", "source", "license"):
        check.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role}; else recognised by its name")
    check.add_argument("--label", action="append", default=[], metavar="COLUMN", help="label column; may be repeated")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the findings for machines")
    check.add_argument("--html", type=Path, metavar="FILE", help="write a page with figures and thumbnails")
    arguments = parser.parse_args()
    if arguments.images and importlib.util.find_spec("imagehash") is None:
        raise UserError("--images: copies are found with ImageHash; pip install 'clinical-vlm[check]'")
    sys.exit(run_check(arguments))


def run_check(arguments: argparse.Namespace) -> int:
    """Check and print; returns 1 if there are errors, else 0."""
    from vlm.cli import parse_config
    from vlm.data.catalog import resolve_vitals
    from vlm.data.check.report import as_json, as_text, write_html
    from vlm.data.check.run import CheckOptions, check_table

    given = {role: getattr(arguments, role) for role in ("patient", "image", "split", "view", "source", "license")}
    options = CheckOptions(arguments.images, given, arguments.label)
    if arguments.config:
        data = parse_config(["--config", arguments.config])[0].data
        named = {"patient": data.table.patient, "image": data.table.image, "split": data.table.split}
        columns = {role: given[role] or named.get(role) for role in given}
        labels, vitals = arguments.label or data.table.labels, resolve_vitals(data.table.vitals)
        options = CheckOptions(arguments.images, columns, labels, vitals, data.split)
    result = check_table(arguments.table, options)
    print(as_text(result))
    if arguments.json:
        arguments.json.write_text(as_json(result), encoding="utf-8")
    if arguments.html:
        write_html(result, arguments.html)
        print(f"page: {arguments.html}")
    return int(result.worst == "error")


if __name__ == "__main__":
    run_program(main)
