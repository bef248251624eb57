"""Define the commands `train` and `watch`."""

import argparse
from collections.abc import Sequence

from vlm.config.parsing import parse_config

TRAIN = """Train an adapter: `clinical-vlm train --config demo`.

`--dry-run` makes one step and prints its time and memory. `--seeds 3` and `--folds 5` train several runs and pool them.
"""


def train_options(parser: argparse.ArgumentParser) -> None:
    """Train an adapter from a config."""
    parser.set_defaults(run=run_train, takes_config=True)


def run_train(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Read the config, then train; its own parser answers `--help`, with every key of the config."""
    config, resume = parse_config(options, description=TRAIN)
    counts = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    counts.add_argument("--seeds", type=int)
    counts.add_argument("--folds", type=int)
    several, _ = counts.parse_known_args(options)
    from vlm.training.run import train, try_step  # after the arguments: --help need not wait for PyTorch

    if "--dry-run" in options:
        try_step(config)
    elif several.seeds is not None or several.folds is not None:
        from vlm.training.several import train_several

        train_several(config, 1 if several.seeds is None else several.seeds, several.folds or 0, resume)
    else:
        train(config, resume)


def watch_options(parser: argparse.ArgumentParser) -> None:
    """Show a run in the terminal until it ends."""
    parser.add_argument("run_folder", metavar="run", help="run folder, such as runs/demo, or its name in runs/")
    parser.add_argument("--once", action="store_true", help="print one frame and end")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds between frames; default: 2")
    parser.set_defaults(run=run_watch)


def run_watch(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Find the run and show it in the terminal."""
    from vlm.training.monitor.watch import find_run, watch

    watch(find_run(arguments.run_folder), arguments.once, arguments.seconds)
