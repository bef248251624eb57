"""Draft a report: `python infer.py --adapter runs/demo/adapter --image case.png --vitals "glucose=8.7, bp=145/90"`."""

import argparse
import gc
import json
import os
import sys

from vlm.errors import UserError, run_program


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", default="runs/demo/adapter", help="adapter folder or Hub id")
    parser.add_argument("--base", help="base model in place of the one that the adapter names, such as a local copy")
    parser.add_argument("--image", help="image file; leave it away for a case without one")
    parser.add_argument("--vitals", default="", help='"glucose=8.7, bp=145/90", or a JSON file of names and values')
    parser.add_argument("--max_new_tokens", type=int, default=96, help="longest draft")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args()
    if arguments.max_new_tokens < 1:
        raise UserError("--max_new_tokens: must be at least 1")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    # The first word comes four seconds sooner: nothing here is compiled or lives long enough to be collected.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    gc.disable()
    from vlm.inference.command import draft_case  # after the arguments: --help need not wait for PyTorch

    stream = None if arguments.json else sys.stdout
    report = draft_case(
        arguments.adapter, arguments.image, arguments.vitals, arguments.base, arguments.max_new_tokens, stream
    )
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(report.after_text())


if __name__ == "__main__":
    run_program(main)
