"""Train an adapter: `accelerate launch train_lora.py --config configs/demo.yaml`."""

import sys

from vlm.cli import parse_config
from vlm.errors import run_program


def main() -> None:
    config, resume = parse_config(sys.argv[1:], description=__doc__)
    from vlm.training.run import train  # after the arguments: --help need not wait for PyTorch

    train(config, resume)


if __name__ == "__main__":
    run_program(main)
