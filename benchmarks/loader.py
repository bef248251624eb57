"""Memory and time of a training epoch's loader against the length of the table.

    python -m benchmarks.loader --json loader.json --figure benchmarks/rows.png

Each length runs in a process of its own: a table is written, read into a cohort, and one shuffled epoch of training
batches is drawn from it. The pictures are small and few, since it is the rows that are counted. Peaks are the
kernel's (`VmHWM`, reset before the epoch); file pages that the kernel may take back at any time are told apart from
the process's own memory.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PICTURES, SIDE, BATCH = 64, 32, 32
HEADER = "case,patient,image,glucose,systolic,diastolic,age,pathology,findings\n"


def write_table(folder: Path, rows: int, kind: str) -> str:
    """A table of distinct cases over a handful of pictures; returns its name. Parquet is a folder of shards."""
    import cv2
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import csv

    rng = np.random.default_rng(0)
    for index in range(PICTURES):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8))
    with open(folder / "cases.csv", "w", encoding="utf-8") as file:
        file.write(HEADER)
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            vitals = np.column_stack([rng.normal(7, 2, count).clip(2, 30), rng.normal(120, 15, count),
                                      rng.normal(75, 10, count), rng.uniform(20, 90, count)])  # fmt: skip
            label = rng.integers(0, 2, count)
            for i, (x, y) in enumerate(zip(vitals, label, strict=True), start=start):
                values = f"{x[0]:.1f},{x[1]:.0f},{x[2]:.0f},{x[3]:.0f}"
                report = f"Patchy opacity number {i % 997} in the left lower zone." if y else "No opacity."
                file.write(f"c{i},p{i // 2},{i % PICTURES}.png,{values},{y},{report}\n")
    if kind == "csv":
        return "cases.csv"
    (folder / "shards").mkdir()
    with csv.open_csv(folder / "cases.csv", csv.ReadOptions(block_size=4 << 20)) as batches:
        for number, batch in enumerate(batches):
            pq.write_table(pa.Table.from_batches([batch]), folder / "shards" / f"{number:05d}.parquet")
    return "shards"


def memory(key: str) -> float:
    """A line of /proc/self/status, MiB."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")


class OwnMemory(threading.Thread):
    """The most anonymous memory seen while it runs, MiB; the kernel keeps no peak of that part."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = memory("RssAnon"), threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            self.peak = max(self.peak, memory("RssAnon"))


def measure(rows: int, batches: int | None, kind: str) -> dict[str, float]:
    """Write, read and draw one epoch; called in a process of its own."""
    import torch

    from vlm.config import DataConfig, DropoutConfig, SectionConfig, TableConfig, VitalConfig
    from vlm.data.case import CaseSpec
    from vlm.data.dataset import CaseDataset
    from vlm.data.images.image import ImageSpec
    from vlm.data.ingest.table import load_table
    from vlm.data.sampling import CaseSampler

    torch.set_num_threads(1)
    vitals: list[VitalConfig | str] = [VitalConfig(name) for name in ("glucose", "systolic", "diastolic", "age")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_table(folder, rows, kind)
        table = TableConfig(file=file, id="case", patient="patient", labels=["pathology"], vitals=vitals,
                            report=[SectionConfig("findings")])  # fmt: skip
        start = time.perf_counter()
        cohort = load_table(DataConfig(source="table", root=name, table=table))
        loaded, load_peak = time.perf_counter() - start, memory("VmHWM")
        spec = CaseSpec.fit(cohort, ImageSpec(SIDE), 8)
        dataset = CaseDataset(cohort.split("train"), spec, cohort.sections, dropout=DropoutConfig())
        loader = torch.utils.data.DataLoader(dataset, BATCH, sampler=CaseSampler(dataset, BATCH), collate_fn=len)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
        own, start, drawn = OwnMemory(), time.perf_counter(), 0
        own.start()
        for number, count in enumerate(loader):
            drawn += count
            if number + 1 == batches:
                break
        seconds = time.perf_counter() - start
        own.done.set()
        own.join()
        return {"rows": rows, "load_s": loaded, "load_peak_mib": load_peak, "epoch_peak_mib": memory("VmHWM"),
                "epoch_own_mib": own.peak, "cases_drawn": drawn, "cases_per_s": drawn / seconds}  # fmt: skip


def draw(results: list[dict[str, float]], file: Path) -> None:
    """Cases a second, seconds of reading and memory against the rows, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"load_s": "reading the table, s", "cases_per_s": "training cases drawn a second",
              "epoch_own_mib": "memory of an epoch, MiB"}  # fmt: skip
    figure, axes = plt.subplots(1, len(panels), figsize=(10, 3), layout="constrained")
    rows = [result["rows"] for result in results]
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        values = [result[key] for result in results]
        axis.plot(rows, values, "o-", color="#1f4e79")
        axis.set(xscale="log", xlabel="rows", title=title, ylim=(0, 1.15 * max(values)))
    axes[0].set(yscale="log", ylim=(min(r["load_s"] for r in results) / 2, max(r["load_s"] for r in results) * 2))
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--batches", type=int, help="stop an epoch after so many batches; all of it without")
    parser.add_argument("--kind", choices=["csv", "parquet"], default="csv", help="one file, or a folder of shards")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.batches, arguments.kind)))
        return
    limit = ["--kind", arguments.kind]
    limit += ["--batches", str(arguments.batches)] if arguments.batches else []
    results = []
    for rows in arguments.rows:
        command = [sys.executable, "-m", "benchmarks.loader", "--one", str(rows), *limit]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    keys = list(results[0])
    print("| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys), sep="\n")
    for result in results:
        print("| " + " | ".join(f"{result[key]:,.0f}" for key in keys) + " |")
    ratios = {key: results[-1][key] / results[0][key] for key in ("epoch_peak_mib", "epoch_own_mib", "cases_per_s")}
    print(*(f"loader.{key}: {ratio:.2f} times that of the shortest table" for key, ratio in ratios.items()), sep="\n")
    if arguments.figure:
        draw(results, arguments.figure)
    if arguments.json:
        flat = {f"loader.{result['rows']}.{key}": result[key] for result in results for key in keys}
        flat |= {f"loader.ratio_{key}": ratio for key, ratio in ratios.items()}
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
