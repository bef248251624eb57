"""`python -m vlm.training watch RUN`: a live view of a running or finished run."""

import argparse

from vlm.errors import run_program
from vlm.training.monitor.watch import SECONDS, find_run, watch


def main() -> None:
    parser = argparse.ArgumentParser(prog="vlm.training", description=__doc__)
    commands = parser.add_subparsers(required=True)
    watching = commands.add_parser("watch", help="show a run in the terminal until it ends; reads, and writes nothing")
    watching.add_argument("run", help="folder of the run, such as runs/demo, or its name in runs/")
    watching.add_argument("--once", action="store_true", help="print one frame and end, as into a pipe")
    watching.add_argument("--seconds", type=float, default=SECONDS, help=f"time between frames ({SECONDS:g})")
    arguments = parser.parse_args()
    watch(find_run(arguments.run), arguments.once, arguments.seconds)


if __name__ == "__main__":
    run_program(main)
