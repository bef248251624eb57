"""An epoch from loose files against one from packed shards, and the memory of packing.

    python -m benchmarks.packed --cases 500 4000 --json packed.json

Each part runs in a process of its own: the built-in cohort is drawn and packed, then one epoch of decoded training
cases is drawn from the files and one from the shards, each in the order that training has, and both again. Before an
epoch the system forgets what it holds of these files, so their bytes come from the disk, and are counted there.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.loader import OwnMemory

BATCH, SIZE = 32, 224


def disk_reads() -> float:
    """MiB that this process has had fetched from the disk."""
    return int(re.findall(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)[0]) / 2**20


def forget(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for file in filter(Path.is_file, folder.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def prepare(folder: str, cases: int, rows: int, what: str) -> dict[str, float]:
    """Draw the cohort, or read and pack it: seconds, and the peak of the process's own memory."""
    from vlm.config import DataConfig, PhantomConfig
    from vlm.data.ingest.phantom import load_phantom
    from vlm.data.prepare.pack import PackOptions, pack

    data = DataConfig(root=f"{folder}/files", phantom=PhantomConfig(cases=cases))
    own, start = OwnMemory(), time.perf_counter()
    own.start()
    load_phantom(data) if what == "draw" else pack(data, Path(folder) / "shards", PackOptions(rows))
    seconds = time.perf_counter() - start
    own.done.set()
    own.join()
    return {"seconds": seconds, "own_mib": own.peak}


def epoch(folder: str, cases: int, source: str, workers: int) -> dict[str, float]:
    """One shuffled epoch of decoded training cases."""
    import torch

    from vlm.config import DataConfig, DropoutConfig, PhantomConfig
    from vlm.data.case import CaseSpec
    from vlm.data.dataset import CaseDataset
    from vlm.data.images.image import ImageSpec
    from vlm.data.ingest.sources import load_cohort
    from vlm.data.sampling import CaseSampler, ShardSampler, shards_of

    torch.set_num_threads(1)
    root = Path(folder) / {"phantom": "files", "packed": "shards"}[source]
    data = DataConfig(source=source, root=str(root), phantom=PhantomConfig(cases=cases))  # type: ignore[arg-type]
    start = time.perf_counter()
    cohort = load_cohort(data)
    loaded = time.perf_counter() - start
    spec = CaseSpec.fit(cohort, ImageSpec(SIZE), 8)
    dataset = CaseDataset(
        cohort.split("train"), spec, cohort.sections, dropout=DropoutConfig(), interleave_shards=data.interleave_shards
    )
    shards = shards_of(dataset)
    sampler = CaseSampler(dataset, BATCH) if shards is None else ShardSampler(dataset, shards, BATCH, 8)
    loader = torch.utils.data.DataLoader(dataset, 8, sampler=sampler, collate_fn=len, num_workers=workers)
    forget(root)
    own, before, start = OwnMemory(), disk_reads(), time.perf_counter()
    own.start()
    drawn = sum(loader)
    seconds = time.perf_counter() - start
    own.done.set()
    own.join()
    return {"load_s": loaded, "cases_per_s": drawn / seconds, "from_disk_mib": disk_reads() - before,
            "own_mib": own.peak}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[500, 4000])
    parser.add_argument("--rows_per_shard", type=int, default=128)
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that read images; their reading is not counted"
    )
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, folder, cases = arguments.one
        if what in ("draw", "pack"):
            measured = prepare(folder, int(cases), arguments.rows_per_shard, what)
        else:
            measured = epoch(folder, int(cases), what, arguments.workers)
        print(json.dumps(measured))
        return
    flat: dict[str, float] = {}
    options = ["--rows_per_shard", str(arguments.rows_per_shard), "--workers", str(arguments.workers)]
    for cases in arguments.cases:
        with tempfile.TemporaryDirectory() as folder:
            for turn, what in enumerate(("draw", "pack", "phantom", "packed", "phantom", "packed")):
                command = [sys.executable, "-m", "benchmarks.packed", "--one", what, folder, str(cases), *options]
                done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(f"{cases:,} {what}: " + ", ".join(f"{key} {value:,.1f}" for key, value in done.items()))
                flat |= {f"packed.{cases}.{turn}.{what}.{key}": value for key, value in done.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
