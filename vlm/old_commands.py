"""Run a command of an earlier version by its new name, and print that name."""

import runpy
import sys


def run_renamed(old: str, *argv: str) -> None:
    """Run `clinical-vlm ARGV` in place of `python -m OLD`."""
    print(f"python -m {old} is now: clinical-vlm {' '.join(argv[:1])}", file=sys.stderr)
    sys.argv = ["clinical-vlm", *argv]
    runpy.run_module("vlm.cli", run_name="__main__")
