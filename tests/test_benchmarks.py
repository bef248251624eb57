"""The benchmarks run to their end, where they can without the hardware that they are for."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import lengths_of, main


def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    """On a tiny shape in NF4: both loops have the same loss, packed as on a GPU."""
    file = tmp_path / "gpu.json"
    tiny = ["--device", "cpu", "--shapes", "tiny", "--small", "tiny", "--longest", "160", "--repeats", "1"]
    main([*tiny, "--json", str(file), "--data.image_size", "64", "--model.vision.name", "resnet18",
          "--train.optimizer", "adamw_torch", "--train.packing", "always"])  # fmt: skip
    found = json.loads(file.read_text())
    assert found["gpu.cpu_gpu_loss_difference"] == 0
    for kind in ("full", "real"):
        assert found[f"gpu.tiny.{kind}.packing"] == 1
        assert found[f"gpu.tiny.{kind}.loss_difference"] < 1e-5
        assert found[f"gpu.tiny.{kind}.step_ours_s"] > 0
    assert found["gpu.tiny.full.padding"] == 0 < found["gpu.tiny.real.padding"]


def test_half_of_a_batch_of_real_lengths_is_padding() -> None:
    drawn = [lengths_of("real", 4, 512, seed) for seed in range(200)]
    padding = 1 - sum(map(sum, drawn)) / sum(4 * max(lengths) for lengths in drawn)
    assert padding == pytest.approx(0.47, abs=0.03)
