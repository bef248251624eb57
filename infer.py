"""Draft a report as `clinical-vlm draft` does: `python infer.py --image case.png --vitals "glucose=8.7, bp=145/90"`."""

import sys

from vlm.cli import main as run_command
from vlm.errors import run_program


def main() -> None:
    run_command(["draft", *sys.argv[1:]])


if __name__ == "__main__":
    run_program(main)
