"""`python -m vlm.explanation check ADAPTER --data configs/demo.yaml`: does the heat lie where the opacity is drawn?"""

import argparse
from pathlib import Path

from vlm.errors import UserError, run_program


def main() -> None:
    parser = argparse.ArgumentParser(prog="vlm.explanation", description=__doc__)
    parser.add_argument("what", choices=["check"])
    parser.add_argument("adapter", help="adapter folder or Hub id")
    parser.add_argument("--data", required=True, help="config (.yaml) of the built-in cohort")
    parser.add_argument("--split", default="test", choices=["test", "validation"], help="cases that are looked at")
    parser.add_argument("--cases", type=int, help="at most so many; without it all")
    parser.add_argument("--output", default="explanation.json", help="file of the rates, JSON")
    parser.add_argument("--base", help="base model in place of the one that the adapter names")
    arguments, overrides = parser.parse_known_args()
    if arguments.cases is not None and arguments.cases < 1:
        raise UserError("--cases: must be at least 1")
    from vlm.explanation.pointing_game import check_adapter  # after the arguments: --help need not wait for PyTorch

    check_adapter(arguments.adapter, arguments.data, arguments.split, arguments.cases, Path(arguments.output),
                  arguments.base, overrides)  # fmt: skip


if __name__ == "__main__":
    run_program(main)
