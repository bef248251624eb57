"""Run `clinical-vlm explain` under its earlier name."""

import sys

from vlm.old_commands import run_renamed

if __name__ == "__main__":
    run_renamed("vlm.explanation", "explain", *sys.argv[2:])  # without the word check
