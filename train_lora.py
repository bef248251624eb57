"""Train an adapter as `clinical-vlm train` does: `accelerate launch train_lora.py --config configs/demo.yaml`."""

import sys

from vlm.cli import main as run_command
from vlm.errors import run_program


def main() -> None:
    run_command(["train", *sys.argv[1:]])


if __name__ == "__main__":
    run_program(main)
