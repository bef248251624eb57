"""Training by several processes is the training of one, however the base is held, and whoever goes on with it."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from safetensors.torch import load_file

from tests.forks import PROJECT, Forks
from tests.runs import Run, write_config
from vlm.errors import UserError
from vlm.training.run_folder import checkpoints_of
from vlm.training.sharding import asked_to_shard, can_shard

FSDP = {"ACCELERATE_USE_FSDP": "true"}
ZERO_3 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
"""What the configs of `accelerate launch` set."""


@pytest.fixture(scope="module")
def config_file(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one case at a time, as four processes read the batch."""
    return write_config(tiny_llm, table_root, tmp_path_factory.mktemp("processes"), micro_batch_size=1)


@pytest.fixture(scope="module")
def one(forks: Forks, config_file: Path) -> Run:
    """By one process."""
    return Run(config_file, "one").to_its_end(forks)


def is_that_of(run: Run, one: Run) -> None:
    """Weights, losses and metrics to 1e-5; the reports to the letter, and each case once."""
    for name in ("adapter_model.safetensors", "vlm.safetensors"):
        ours, theirs = load_file(run.adapter / name), load_file(one.adapter / name)
        worst = max((ours[key] - theirs[key]).abs().max().item() for key in theirs)
        print(f"{run.folder.name}: {name}: largest difference of a weight {worst:.1e}")
        assert worst <= 1e-5
    assert len(run.result()[1]) == len(one.result()[1])
    for a, b in zip(run.result()[1], one.result()[1], strict=True):
        assert numbers(a) == pytest.approx(numbers(b), rel=1e-5)
    ours, theirs = (
        [json.loads(line) for line in (r.folder / "predictions.jsonl").read_text().splitlines()] for r in (run, one)
    )
    assert [(row["id"], row["report"]) for row in ours] == [(row["id"], row["report"]) for row in theirs]
    ours, theirs = (json.loads((r.folder / "metrics.json").read_text())["text_loss"] for r in (run, one))
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-5)


def numbers(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name != "grad_norm"}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_one_process_equals_several(processes: int, forks: Forks, config_file: Path, one: Run) -> None:
    run = Run(config_file, f"by-{processes}").to_its_end(forks, ranks=processes)
    newest = run.folder / "checkpoints" / "checkpoint-12"
    assert len(load_file(newest / "processes.safetensors")["torch"]) == processes, "so many trained"
    is_that_of(run, one)


needs_shards = pytest.mark.skipif(not can_shard(), reason="this PyTorch cannot leave whole what trains")


@pytest.mark.slow
@needs_shards
@pytest.mark.parametrize("asked", [FSDP, ZERO_3], ids=["fsdp", "zero-3"])
def test_the_frozen_base_is_split_alone(asked: dict, forks: Forks, config_file: Path, one: Run) -> None:
    run = Run(config_file, f"split by {len(asked)}").to_its_end(forks, ranks=2, **asked)
    assert ("in place of DeepSpeed" in run.said.read_text()) == (asked is ZERO_3)
    held = re.search(r"the frozen layers are split, ([\d.]+) MiB on each of 2 processes in place of ([\d.]+);",
                     run.said.read_text())  # fmt: skip
    assert held and 0.4 < float(held[1]) / float(held[2]) < 0.6
    is_that_of(run, one)


@pytest.mark.slow
@needs_shards
def test_packed_4_bit_layers_are_split(forks: Forks, tiny_llm: str, table_root: Path, tmp_path: Path) -> None:
    """The recipe of several GPUs: QLoRA, with NF4 values in floating-point storage."""
    file = write_config(tiny_llm, table_root, tmp_path, micro_batch_size=1)
    packed = ("--model.llm.dequantize", "never")
    one = Run(file, "packed").to_its_end(forks, *packed)
    run = Run(file, "packed and split").to_its_end(forks, *packed, ranks=2, **FSDP)
    held = re.search(r"are split, ([\d.]+) MiB on each of 2 processes in place of ([\d.]+);", run.said.read_text())
    assert held and 0.4 < float(held[1]) / float(held[2]) < 0.6
    is_that_of(run, one)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [
    ("2", "1"), pytest.param("2 fsdp", "4", marks=needs_shards), pytest.param("1", "2 fsdp", marks=needs_shards)
])  # fmt: skip
def test_another_number_of_processes_goes_on(
    before: str, after: str, forks: Forks, config_file: Path, one: Run
) -> None:
    """An elastic restart: killed, and resumed by fewer or more."""
    run = Run(config_file, f"from {before} to {after}")
    hows = [{"ranks": int(how[0]), **(FSDP if "fsdp" in how else {})} for how in (before, after)]
    first, *_ = processes = forks.start(*run.argv, said=run.said, **hows[0])
    run.wait_until(lambda: run.has_made(6), first)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    forks.wait()
    assert checkpoints_of(run.folder / "checkpoints") and not run.adapter.exists()
    run.to_its_end(forks, "--resume", **hows[1])
    assert f"begun by {before[0]} processes, now {after[0]}: the random draws differ" in run.said.read_text()
    is_that_of(run, one)


def test_two_ways_to_split_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="FSDP and DeepSpeed were both asked for"):
        asked_to_shard()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(UserError, match="ZeRO-2 splits only what trains"):
        asked_to_shard()


def test_a_pytorch_that_cannot_split_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr("vlm.training.sharding.can_shard", lambda: False)
    with pytest.raises(UserError, match=r"^FSDP: PyTorch \S+ cannot leave whole what trains; update it"):
        asked_to_shard()


@pytest.mark.parametrize("name", ["cpu", "single_gpu", "ddp", "fsdp_qlora", "deepspeed_zero3"])
def test_accelerate_reads_its_configs(name: str) -> None:
    """As `accelerate launch` itself reads them, up to the environment that it gives the processes."""
    file = PROJECT / "configs" / "accelerate" / f"{name}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(file), "train_lora.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    if name in ("cpu", "single_gpu"):
        _, environment = prepare_simple_launcher_cmd_env(arguments)
    elif name == "deepspeed_zero3":
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(arguments)
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"
    else:
        environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") == (name == "fsdp_qlora")
    assert (environment.get("ACCELERATE_USE_DEEPSPEED") == "true") == (name == "deepspeed_zero3")
    assert (environment.get("ACCELERATE_USE_CPU", "false").lower() == "true") == (name == "cpu")
