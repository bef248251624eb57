"""Weak scaling: the same work for each process, by one and by several on this machine.

    python -m benchmarks.processes --processes 1 2 --json processes.json

Training is `train_lora.py` by torchrun over gloo, with 8 cases a process and step and one thread each; its speed is
read from the run's log. Drafting is `infer.py --input` with 64 rows a process; its time is that of the whole command
less that of one row, and one process takes all cores as well as several do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vlm.training.run_folder import read_log

CASES, STEPS, ROWS = 8, 8, 64
"""Cases of a process in a step, steps of a run, rows of a process in a table."""


def launch(processes: int, *arguments: str) -> float:
    """Seconds that a program takes by so many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    subprocess.run([*launcher, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - start


def training(processes: int, folder: Path, config: str, overrides: list[str]) -> float:
    """Cases a second, the median over the log's rows without the first, which warms up."""
    name = f"by-{processes}"
    launch(processes, "train_lora.py", "--config", config, "--run.folder", str(folder), "--run.name", name,
           "--train.batch_size", str(CASES * processes), "--train.micro_batch_size", str(CASES),
           "--train.max_steps", str(STEPS), "--train.log_steps", "1", "--train.eval_steps", str(STEPS),
           "--train.threads", "1", "--train.precision", "fp32", "--loss.head_only_steps", "0",
           "--evaluation.ablation", "false", "--data.phantom.cases", "200", "--data.root", str(folder / "data"),
           *overrides)  # fmt: skip
    rows = [row["samples_per_s"] for row in read_log(folder / name / "log.jsonl") if "samples_per_s" in row]
    return statistics.median(rows[1:])


def drafting(processes: int, folder: Path, adapter: str) -> float:
    """Reports a second."""
    seconds = []
    for rows in (1, ROWS):
        table, output = folder / f"{processes}-{rows}.csv", folder / f"{processes}-{rows}.jsonl"
        values = (f"{4 + number % 90 / 10},{100 + number % 60}" for number in range(rows * processes))
        table.write_text("\n".join(["glucose,systolic", *values]) + "\n")
        files = ("--input", str(table), "--images", str(folder), "--output", str(output))
        seconds.append(launch(processes, "infer.py", "--adapter", adapter, *files, "--max_new_tokens", "48"))
    return (ROWS - 1) * processes / (seconds[1] - seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--adapter", default="runs/demo/adapter")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments, overrides = parser.parse_known_args()
    flat: dict[str, Any] = {}
    print("| processes | trained cases a second | times | of the ideal | drafts a second | times | of the ideal |")
    print("| --- " * 7 + "|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for processes in arguments.processes:
            rates = (
                training(processes, folder, arguments.config, overrides),
                drafting(processes, folder, arguments.adapter),
            )
            cells = []
            for kind, rate in zip(("train", "draft"), rates, strict=True):
                flat[f"processes.{kind}_{processes}"] = rate
                times = rate / flat[f"processes.{kind}_{arguments.processes[0]}"]
                ideal = processes / arguments.processes[0]
                cells += [f"{rate:.2f}", f"{times:.2f}", f"{times / ideal:.0%}"]
            print(f"| {processes} | " + " | ".join(cells) + " |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
