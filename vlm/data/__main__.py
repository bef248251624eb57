"""Deprecated entry point of `clinical-vlm check` and `pack`."""

import sys

from vlm.old_commands import run_renamed

if __name__ == "__main__":
    run_renamed("vlm.data", *sys.argv[1:])
