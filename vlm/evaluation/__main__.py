"""The earlier name of `clinical-vlm evaluate` and `compare`."""

import sys

from vlm.old_commands import run_renamed

if __name__ == "__main__":
    command = [] if sys.argv[1:2] == ["compare"] else ["evaluate"]
    run_renamed("vlm.evaluation", *command, *sys.argv[1:])
