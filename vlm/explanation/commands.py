"""Define the command `explain`: the pointing game on drawn opacities."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlm.errors import UserError


def explain_options(parser: argparse.ArgumentParser) -> None:
    """Measure whether explanations point at the opacities of the built-in cohort."""
    parser.add_argument("adapter", help="adapter folder or Hub id")
    parser.add_argument("--data", required=True, help="config of the built-in cohort, such as demo")
    parser.add_argument("--split", default="test", choices=["test", "validation"], help="split to measure on")
    parser.add_argument("--cases", type=int, help="most cases to use; default: all")
    parser.add_argument("--output", default="explanation.json", help="JSON file of hit rates to write")
    parser.add_argument("--base", help="base model instead of the adapter's")
    parser.set_defaults(run=run_explain, takes_config=True)


def run_explain(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Check the options, then measure."""
    if arguments.cases is not None and arguments.cases < 1:
        raise UserError("--cases: must be at least 1")
    from vlm.explanation.pointing_game import check_adapter  # after the arguments: --help need not wait for PyTorch

    check_adapter(arguments.adapter, arguments.data, arguments.split, arguments.cases, Path(arguments.output),
                  arguments.base, list(options))  # fmt: skip
