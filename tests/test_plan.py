"""The plan on paper: its terms against counted operations and bytes, its choices, and the tables in the docs."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlm.config import Config
from vlm.config.parsing import parse_config, to_yaml
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.plan.__main__ import main
from vlm.plan.cost import Job, Tokens, Work, guessed_tokens
from vlm.plan.drafting import plan_drafting
from vlm.plan.gpus import GPUS, Machine, find_gpu
from vlm.plan.plan import make_plan
from vlm.plan.shapes import CNNS, PRESETS, Base, base_from, base_of, cnn_of, count_cnn
from vlm.plan.terms import Terms
from vlm.training.dry_run import longest_cases, measure_step
from vlm.training.memory import MIB
from vlm.training.run import build_model, case_dataset

PROJECT = Path(__file__).resolve().parent.parent
SCALE = PROJECT / "docs" / "scale.md"
PLAIN = Machine("plain", flops=1e9, memory=1e9, bandwidth=1e8, link=1e8, passing=1e8, large=5e7,
                value_bytes=4, mfu=1, mbu=1, attention=0.5, call_s=0, packed=False, overlaps=False)  # fmt: skip
"""A machine of round numbers."""


@pytest.fixture
def tiny_job(tiny_config: Config) -> Job:
    """The tests' model: 10 fixed tokens, 20 of prompt, 5 of report."""
    model = tiny_config.model
    return Job(tiny_config, base_of(model.llm), cnn_of(model.vision), Tokens(10, 20, 5))


def single_gpu(*overrides: str) -> Config:
    return parse_config(["--config", str(PROJECT / "configs" / "single_gpu.yaml"), *overrides])[0]


def job_of(config: Config, base: Base) -> Job:
    return Job(config, base, cnn_of(config.model.vision), guessed_tokens(config, 120, 0.2))


# ------------------------------------------------------------------------------------ exact values


def test_the_terms_of_the_tiny_model_by_hand(tiny_job: Job) -> None:
    base = tiny_job.base
    assert (base.layers, base.hidden, base.attention, base.keys, base.vocabulary) == (2, 64, 64, 32, base.vocabulary)
    assert base.linear == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) == 73_728
    assert tiny_job.lora == 2 * 2 * (128 + 96 + 96 + 128) == 1_792
    assert tiny_job.read_tokens(4) == 10 + 4 * 15 == 70 and tiny_job.read_tokens(1) == 25
    trunk = tiny_job.trunk(4, PLAIN)
    # Frozen weights forwards and to the inputs; LoRA to its weights as well; attention, four products and eight.
    assert trunk.products == 4 * 73_728 * 70 + 6 * 1_792 * 70 == 21_396_480
    assert trunk.attention == 12 * 2 * 64 * 70 * 25 == 2_688_000
    own = 61 * 64 + 39 * 64 + 27 * 32 + 14 * 128
    lora = (6 * 64 + 10 * 64) + 2 * (6 * 64 + 10 * 32) + (6 * 64 + 10 * 64)
    assert trunk.moved == 4 * 2 * 70 * (own + lora)
    assert tiny_job.words(4, PLAIN).products == 4 * 64 * base.vocabulary * 4 * 5
    assert tiny_job.key_bytes(PLAIN) == 2 * 2 * 32 * 4
    assert trunk.weights == 2 * 2 * 4 * 73_728, "twice, for the fixed words by themselves"
    assert tiny_job.word(3, 5, PLAIN).weights == 4 * (73_728 + base.vocabulary * 64) + 3 * 25 * 512


def test_checkpointing_and_packing_change_what_they_must(tiny_config: Config, tiny_job: Job) -> None:
    llm = replace(tiny_config.model.llm, activation_checkpointing=True)
    config = replace(tiny_config, model=replace(tiny_config.model, llm=llm))
    again = replace(tiny_job, config=config)
    assert again.read_tokens(4) == 4 * 25, "recomputed activations allow no cache of the fixed words"
    assert again.trunk(4, PLAIN).products == 6 * 73_728 * 100 + 8 * 1_792 * 100
    assert again.trunk(4, PLAIN).attention == 16 * 2 * 64 * 100 * 25
    assert again.case_memory(PLAIN) < tiny_job.case_memory(PLAIN)
    packed = replace(PLAIN, packed=True, value_bytes=2)
    half = (4 + 8 / 64 + 32 / 16384) / 8
    assert tiny_job.layer_weights(packed) == pytest.approx(73_728 * (half + 4))
    assert tiny_job.layer_weights(PLAIN) == 73_728 * 4
    words = tiny_job.base.vocabulary * 64 + 5 * 64
    own = tiny_job.lora + tiny_job.projectors + tiny_job.cnn.parameters
    assert tiny_job.memory(packed).weights == pytest.approx(73_728 * half + 2 * words + 4 * own)


def test_work_takes_the_time_of_its_parts() -> None:
    work = Work(products=3e9, attention=5e8, moved=3e8, large=1e8, weights=2e8, calls=5)
    machine = replace(PLAIN, call_s=1.0)
    assert work.seconds(machine) == 3 + 1 + 3 + 2 + 2 + 5
    gpu = replace(machine, overlaps=True)
    assert work.seconds(gpu) == 3 + 1 + 3 + 2 + 2, "it is launched ahead of its work"
    assert work.seconds(gpu, drafts=True) == 3 + 1 + 3 + 2
    assert work.seconds(replace(gpu, call_s=9.0)) == 45
    assert (work + work) == work * 2


# ------------------------------------------------------------------------- against what is counted


def test_the_trunk_takes_the_operations_that_pytorch_counts(tiny_job: Job, tiny_model) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    tiny_model.base.set_attn_implementation("eager")  # whose products are counted
    fixed, cases, length = tiny_model.prompt.fixed_tokens, 4, 60
    job = replace(tiny_job, tokens=Tokens(fixed, 40, 20))
    embeddings = torch.randn(cases, length, 64, requires_grad=True)
    mask = torch.ones(cases, length, dtype=torch.long)
    embeddings = torch.cat([embeddings[:1, :fixed].expand(cases, -1, -1), embeddings[:, fixed:]], dim=1)
    with FlopCounterMode(display=False) as counted:
        tiny_model.train().trunk(embeddings, mask).sum().backward()
    work = job.trunk(cases, PLAIN)
    assert work.products + work.attention == pytest.approx(counted.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(("name", "frozen_stages", "off"), [("test_resnet", 0, 0.02), ("test_resnet", 2, 0.05),
                                                            ("test_efficientnet", 8, 1e-9)])  # fmt: skip
def test_the_cnn_takes_the_operations_that_pytorch_counts(
    name: str, frozen_stages: int, off: float, tiny_config: Config
) -> None:
    """Off by the gradients of what the first trained stage reads, which nobody needs.

    Backwards of a convolution in groups PyTorch counts as of one in none, so that network is counted forwards.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from vlm.model.vision import ImageEncoder

    trains = name == "test_resnet"
    vision = replace(tiny_config.model.vision, name=name, train=trains, frozen_stages=frozen_stages * trains)
    config = replace(tiny_config, data=replace(tiny_config.data, image_size=224),
                     model=replace(tiny_config.model, vision=vision))  # fmt: skip
    encoder = ImageEncoder(vision, 224, 64, 1.0, load_weights=False).train()
    with FlopCounterMode(display=False) as counted:
        grid = encoder.grid(torch.randn(2, 3, 224, 224))
        if trains:
            grid.sum().backward()
    job = Job(config, PRESETS["135M"], cnn_of(vision), Tokens(10, 20, 5))
    assert job.image(2, PLAIN).products == pytest.approx(counted.get_total_flops(), rel=off)


def test_what_trains_and_what_it_weighs(tiny_job: Job, tiny_model) -> None:
    trained = {name: value.numel() for name, value in tiny_model.trainable_parameters().items()}
    assert tiny_job.lora == sum(n for name, n in trained.items() if name.startswith("llm."))
    cnn = sum(n for name, n in trained.items() if name.startswith("vision.cnn."))
    assert tiny_job.cnn.parameters == cnn
    assert tiny_job.trainable == pytest.approx(sum(trained.values()), rel=0.1)
    assert tiny_job.base.parameters == sum(p.numel() for p in tiny_model.base.parameters()) - tiny_job.lora


def test_a_layer_keeps_what_the_dry_run_measures(tiny_config: Config, tiny_llm: str, tmp_path: Path) -> None:
    """Eight layers more; what is outside of them weighs little in a model that is not tiny."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny_llm, tmp_path / "deep")
    shape = LlamaConfig.from_pretrained(tiny_llm)
    shape.num_hidden_layers = 10
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "deep")
    cohort, on_paper, measured = load_cohort(tiny_config.data), [], []
    for folder in (tiny_llm, str(tmp_path / "deep")):
        llm = replace(tiny_config.model.llm, base=folder)
        config = replace(tiny_config, model=replace(tiny_config.model, llm=llm))
        model = build_model(config, cohort, torch.device("cpu"), torch.float32).train()
        batch_of = longest_cases(model, case_dataset(config, model.spec, cohort, "train"))
        batch = batch_of(1)
        report, whole = int((batch["labels"] >= 0).sum()), batch["input_ids"].shape[1]
        tokens = Tokens(model.prompt.fixed_tokens, whole - report, report)
        on_paper.append(Job(config, base_of(llm), cnn_of(config.model.vision), tokens).case_memory(PLAIN))
        measured.append(measure_step(model, batch_of, 48).case)
    more = [few_many[1] - few_many[0] for few_many in (on_paper, measured)]
    print(f"eight layers: {more[0] / MIB:.3f} MiB on paper, {more[1] / MIB:.3f} measured")
    assert more[0] == pytest.approx(more[1], rel=0.15)


def test_the_table_of_cnns_is_what_is_counted() -> None:
    for name, cnn in CNNS.items():
        assert count_cnn(name) == cnn
    assert sum(p for p, _, _ in CNNS["resnet50"].stages) == pytest.approx(4.09e9, rel=0.01), "as published"
    with pytest.raises(UserError, match=r"model\.vision: cannot build no_such_cnn"):
        count_cnn("no_such_cnn")


# ---------------------------------------------------------------------------------------- machines


def test_presets_have_their_published_sizes() -> None:
    sizes = {"135M": 134.5e6, "1B": 1.2358e9, "8B": 8.0303e9, "70B": 70.5537e9}
    assert {name: base.parameters for name, base in PRESETS.items()} == pytest.approx(sizes, rel=1e-3)


def test_bases_are_known_by_name_by_folder_or_by_preset(tiny_config: Config, tmp_path: Path) -> None:
    assert base_of(single_gpu().model.llm) is PRESETS["8B"] and base_of(single_gpu().model.llm, "70b") is PRESETS["70B"]
    assert base_of(tiny_config.model.llm).hidden == 64
    with pytest.raises(UserError, match="--base: no preset 7B; there are 135M"):
        base_of(tiny_config.model.llm, "7B")
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "num_attention_heads": 2}')
    with pytest.raises(UserError, match="has no 'num_hidden_layers'"):
        base_of(replace(tiny_config.model.llm, base=str(tmp_path)))
    with pytest.raises(UserError, match=r"no config\.json of"):
        base_of(replace(tiny_config.model.llm, base=str(PROJECT / "tests")))
    sizes = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")
    values = dict(zip(sizes, (8, 2, 1, 16, 9), strict=True))
    assert base_from(values, "x").kv_heads == 2 and base_from(values, "x").head_size == 4


def test_an_unknown_gpu_is_named_with_the_nearest() -> None:
    assert find_gpu("nvidia h100") is not None and find_gpu("rtx 4090", mfu=0.3).mfu == 0.3
    with pytest.raises(UserError, match=r"no published numbers of H1OO; did you mean H100\?"):
        find_gpu("H1OO")
    with pytest.raises(UserError, match="known are T4, L4"):
        find_gpu("abacus")
    assert GPUS["T4"].value_bytes == 4, "it has no bf16"


# ------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize(
    ("base", "gpu", "studies", "engine"),
    [("8B", "H100", 1e6, "one device"), ("8B", "H100", 1e8, "DDP"), ("70B", "A10", 1e3, "FSDP-QLoRA"),
     ("70B", "H200", 1e3, "one device"), ("8B", "L4", 1e3, "one device")],
)  # fmt: skip
def test_the_engine_of_training(base: str, gpu: str, studies: float, engine: str) -> None:
    plan = make_plan(job_of(single_gpu(), PRESETS[base]), find_gpu(gpu), Terms(studies, 3))
    assert plan.training.engine == engine and plan.training.fits and plan.training.reason
    assert plan.training.wall_hours <= 24 * 7
    assert plan.training.memory_gb * 1e9 < find_gpu(gpu).memory


def test_the_engine_of_drafting() -> None:
    job, h100 = job_of(single_gpu(), PRESETS["8B"]), find_gpu("H100")
    engines = [plan_drafting(job, h100, Terms(studies, 3)).engine for studies in (1e3, 1e6, 1e10)]
    assert engines == ["PyTorch", "vLLM", "vLLM under Ray Data"]
    large = job_of(single_gpu(), PRESETS["70B"])
    served = plan_drafting(large, h100, Terms(1e6, 3))
    assert served.engine == "vLLM" and served.gpus % 2 == 0, "141 GB of weights share two at least"
    assert plan_drafting(large, find_gpu("A10"), Terms(1e6, 3)).pytorch_gpu_hours == 0, "nor do 4 bits fit 24 GB"
    assert plan_drafting(large, find_gpu("T4"), Terms(1e6, 3)).engine == "none"


def test_more_devices_take_less_time_and_more_hours() -> None:
    job, gpu = job_of(single_gpu(), PRESETS["8B"]), find_gpu("A100-80")
    one, eight = (make_plan(job, gpu, Terms(1e6, 3, gpus=n)).training for n in (1, 8))
    assert one.wall_hours / 8 < eight.wall_hours < one.wall_hours
    assert eight.gpu_hours > one.gpu_hours and (one.sent_gb, eight.engine) == (0, "DDP")
    many = make_plan(job, gpu, Terms(1e6, 3, gpus=64))
    assert any("learn 256 cases a step, not the 32 of train.batch_size" in note for note in many.notes)
    few = make_plan(job_of(single_gpu(), PRESETS["70B"]), find_gpu("L4"), Terms(1e3, 3, gpus=1))
    assert not few.training.fits


def test_what_is_frozen_is_read_once() -> None:
    changes = [word for way in ("rotate", "shift", "scale", "contrast") for word in (f"--data.augment.{way}", "0")]
    still = [*changes, "--model.vision.train", "false"]
    gpu, terms = find_gpu("L4"), Terms(1e6, 3, gpus=1)
    configs = single_gpu(), single_gpu(*still)
    trained, frozen = (make_plan(job_of(config, PRESETS["1B"]), gpu, terms) for config in configs)
    assert frozen.data.read_gb * 3 == trained.data.read_gb and frozen.data.features_gb > 0 == trained.data.features_gb
    assert frozen.training.gpu_hours < trained.training.gpu_hours and frozen.trainable < trained.trainable
    assert trained.data.loose_reads / trained.data.packed_reads == 1000
    slow = make_plan(job_of(single_gpu(), PRESETS["1B"]), gpu, replace(terms, decode_s=1.0))
    assert any("the readers set the pace" in note for note in slow.notes)
    assert slow.training.wall_hours > trained.training.wall_hours


# -------------------------------------------------------------------------------------- the command


def test_the_command_starts_without_pytorch_and_gives_json() -> None:
    code = "import sys, runpy; runpy.run_module('vlm.plan', run_name='__main__'); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "--config", "configs/single_gpu.yaml", "--studies", "1e6", "--gpu", "H100"]
    done = subprocess.run([*command, "--json"], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["studies"] == 1e6 and plan["training"]["engine"] == "one device" and plan["data"]["images_gb"] == 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--studies -1", "--studies: must be more than 0, not -1"), ("--mfu 2", "--mfu: a share between 0 and 1"),
     ("--gpus 0", "--gpus: must be more than 0"), ("--train.epoch 3", r"unknown option --train\.epoch"),
     ("--padding -1", "--padding: a share of at least 0")],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["--config", str(PROJECT / "configs" / "single_gpu.yaml"), *arguments.split()])


def test_a_cpu_is_measured(tiny_config: Config, tmp_path: Path, capsys) -> None:
    (tmp_path / "job.yaml").write_text(to_yaml(tiny_config))
    main(["--config", str(tmp_path / "job.yaml"), "--gpu", "cpu", "--studies", "100", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["gpu"] == "cpu" and 0 < plan["training"]["gpu_hours"] < 10 and plan["drafting"]["engine"] == "PyTorch"


def commands_of(page: str) -> list[tuple[str, list[str]]]:
    """Each command of the page, and the lines of the table below it."""
    found = re.findall(r"```bash\n(python -m vlm\.plan [^\n]+)\n```\n\n((?:\|[^\n]+\n)+)", page)
    return [(command, table.splitlines()) for command, table in found]


def test_the_tables_in_the_docs_are_what_the_tool_prints(capsys, monkeypatch) -> None:
    monkeypatch.chdir(PROJECT)
    commands = commands_of(SCALE.read_text(encoding="utf-8"))
    assert len(commands) >= 3
    for command, table in commands:
        main(shlex.split(command)[3:])
        assert capsys.readouterr().out.splitlines() == table, command


def test_the_collator_makes_what_a_plan_guesses(tiny_config: Config, tiny_model) -> None:
    """Guessed without a tokenizer; that of the tests splits words, so its own count is larger."""
    guessed, prompt = guessed_tokens(tiny_config, 5, 0), Collator(tiny_model.prompt).prompt
    assert guessed.prompt - guessed.fixed > tiny_model.evidence_tokens
    assert guessed.fixed <= prompt.fixed_tokens
