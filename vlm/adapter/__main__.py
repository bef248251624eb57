"""Run `clinical-vlm push`, `seal`, `merge` and `export` by their earlier name."""

import sys

from vlm.old_commands import run_renamed

if __name__ == "__main__":
    run_renamed("vlm.adapter", *sys.argv[1:])
