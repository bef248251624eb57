"""The earlier name of `clinical-vlm watch`."""

import sys

from vlm.old_commands import run_renamed

if __name__ == "__main__":
    run_renamed("vlm.training", *sys.argv[1:])
