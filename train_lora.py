"""Train an adapter: `accelerate launch train_lora.py --config configs/demo.yaml`.

`python train_lora.py --config configs/demo.yaml --dry-run` says what memory it will take, and trains nothing.
"""

import sys

from vlm.config.parsing import parse_config
from vlm.errors import run_program


def main() -> None:
    config, resume = parse_config(sys.argv[1:], description=__doc__)
    from vlm.training.run import train, try_step  # after the arguments: --help need not wait for PyTorch

    if "--dry-run" in sys.argv[1:]:
        try_step(config)
    else:
        train(config, resume)


if __name__ == "__main__":
    run_program(main)
