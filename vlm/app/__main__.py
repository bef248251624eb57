"""Run `clinical-vlm serve` under its earlier name."""

import sys

from vlm.old_commands import run_renamed

if __name__ == "__main__":
    run_renamed("vlm.app", "serve", *sys.argv[1:])
