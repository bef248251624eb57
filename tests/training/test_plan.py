"""The plan on paper (`benchmarks.plan`): its terms against counted operations and measured bytes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import plan
from benchmarks.plan import Job, Tokens, Work, guess_tokens, main
from benchmarks.plan_inputs import GPU, GPUS, PRESETS, base_of, count_cnn
from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.training.dry_run import longest_cases, measure_step
from vlm.training.run import build_model, case_dataset

PROJECT = Path(__file__).resolve().parents[2]
SINGLE_GPU = str(PROJECT / "configs" / "single_gpu.yaml")
PLAIN = GPU(flops=1e9, memory=1e9, bandwidth=1e8, value_bytes=4)


@pytest.fixture(autouse=True)
def no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "PADDING", 0.0)


@pytest.fixture
def tiny_job(tiny_config: Config) -> Job:
    """The tests' model in its own precision: 10 fixed tokens, 20 of prompt, 5 of report."""
    return job_of(changed(tiny_config, quantization="none"), Tokens(10, 20, 5))


def changed(config: Config, **llm: object) -> Config:
    return replace(config, model=replace(config.model, llm=replace(config.model.llm, **llm)))


def job_of(config: Config, tokens: Tokens, gpu: GPU = PLAIN) -> Job:
    model = config.model
    return Job(config, base_of(model.llm), *count_cnn(model.vision, config.data.image_size), tokens, gpu)


def test_the_terms_of_the_tiny_model_by_hand(tiny_job: Job) -> None:
    base = tiny_job.base
    assert (base.layers, base.hidden, base.attention, base.keys) == (2, 64, 64, 32)
    assert base.linear == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) == 73_728
    assert tiny_job.lora == 2 * 2 * (128 + 96 + 96 + 128) == 1_792
    work = tiny_job.layers(4)
    # Frozen weights forwards and to the inputs; LoRA to its weights as well; attention, four products and eight.
    assert work.products == 4 * 73_728 * 70 + 6 * 1_792 * 70 == 21_396_480
    assert work.attention == 12 * 2 * 64 * 70 * 25 == 2_688_000
    own = 61 * 64 + 39 * 64 + 27 * 32 + 14 * 128
    lora = (6 * 64 + 10 * 64) + 2 * (6 * 64 + 10 * 32) + (6 * 64 + 10 * 64)
    assert work.moved == 4 * 2 * 70 * (own + lora)
    assert work.weights == 2 * 2 * 4 * 73_728, "twice, for the fixed words by themselves"


def test_checkpointing_and_packing_change_what_they_must(tiny_job: Job) -> None:
    again = replace(tiny_job, config=changed(tiny_job.config, activation_checkpointing=True))
    assert again.layers(4).products == 6 * 73_728 * 100 + 8 * 1_792 * 100
    assert again.layers(4).attention == 16 * 2 * 64 * 100 * 25
    assert again.case_memory() < tiny_job.case_memory()
    packed = replace(tiny_job, config=changed(tiny_job.config, quantization="nf4"), gpu=replace(PLAIN, value_bytes=2))
    half = (4 + 8 / 64 + 32 / 16384) / 8
    assert packed.layer_weights() == pytest.approx(73_728 * (half + 4)) and tiny_job.layer_weights() == 73_728 * 4
    words = tiny_job.base.vocabulary * 64 + 5 * 64
    own = tiny_job.lora + tiny_job.projectors + sum(parameters for _, parameters, _ in tiny_job.stages)
    assert packed.memory().weights == pytest.approx(73_728 * half + 2 * words + 4 * own)


def test_work_takes_the_time_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MFU", "ATTENTION_MFU", "MBU", "LAUNCH_S"):
        monkeypatch.setattr(plan, name, 1)
    assert Work(products=3e9, attention=5e8, moved=3e8, weights=2e8, calls=5).seconds(PLAIN) == 3 + 0.5 + 3 + 2
    assert Work(products=3e9, calls=45).seconds(PLAIN) == 45


def test_the_layers_take_the_operations_that_pytorch_counts(tiny_job: Job, tiny_model) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    tiny_model.base.set_attn_implementation("eager")  # whose products are counted
    fixed, cases, length = tiny_model.prompt.fixed_tokens, 4, 60
    embeddings = torch.randn(cases, length, 64, requires_grad=True)
    mask = torch.ones(cases, length, dtype=torch.long)
    embeddings = torch.cat([embeddings[:1, :fixed].expand(cases, -1, -1), embeddings[:, fixed:]], dim=1)
    with FlopCounterMode(display=False) as counted:
        tiny_model.train().trunk(embeddings, mask).sum().backward()
    work = replace(tiny_job, tokens=Tokens(fixed, 40, 20)).layers(cases)
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
    config = replace(tiny_config, model=replace(tiny_config.model, vision=vision),
                     data=replace(tiny_config.data, image_size=224))  # fmt: skip
    encoder = ImageEncoder(vision, 224, 64, 1.0, load_weights=False).train()
    with FlopCounterMode(display=False) as counted:
        grid = encoder.grid(torch.randn(2, 3, 224, 224))
        if trains:
            grid.sum().backward()
    work = job_of(config, Tokens(10, 20, 5)).image(2)
    assert work.products == pytest.approx(counted.get_total_flops(), rel=off)


def test_what_trains_and_what_it_weighs(tiny_job: Job, tiny_model) -> None:
    trained = {name: value.numel() for name, value in tiny_model.trainable_parameters().items()}
    assert tiny_job.lora == sum(n for name, n in trained.items() if name.startswith("llm."))
    cnn = sum(n for name, n in trained.items() if name.startswith("vision.cnn."))
    assert sum(parameters for _, parameters, _ in tiny_job.stages) == cnn
    assert tiny_job.trainable == pytest.approx(sum(trained.values()), rel=0.1)
    assert tiny_job.base.parameters == sum(p.numel() for p in tiny_model.base.parameters()) - tiny_job.lora


@pytest.mark.slow
def test_a_layer_keeps_what_the_dry_run_measures(tiny_config: Config, tiny_llm: str, tmp_path: Path) -> None:
    """Eight layers more; what is outside of them weighs little in a model that is not tiny."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny_llm, tmp_path / "deep")
    shape = LlamaConfig.from_pretrained(tiny_llm)
    shape.num_hidden_layers = 10
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "deep")
    cohort, on_paper, measured = load_cohort(tiny_config.data), [], []
    for folder in (tiny_llm, str(tmp_path / "deep")):
        config = changed(tiny_config, base=folder)
        model = build_model(config, cohort, torch.device("cpu"), torch.float32).train()
        batch_of = longest_cases(model, case_dataset(config, model.spec, cohort, "train"))
        batch = batch_of(1)
        report, whole = int((batch["labels"] >= 0).sum()), batch["input_ids"].shape[1]
        tokens = Tokens(model.prompt.fixed_tokens, whole - report, report)
        on_paper.append(job_of(config, tokens).case_memory())
        measured.append(measure_step(model, batch_of, 48).case)
    assert on_paper[1] - on_paper[0] == pytest.approx(measured[1] - measured[0], rel=0.15)


def test_published_sizes() -> None:
    sizes = {"135M": 134.5e6, "1B": 1.2358e9, "8B": 8.0303e9, "70B": 70.5537e9}
    assert {name: base.parameters for name, base in PRESETS.items()} == pytest.approx(sizes, rel=1e-3)
    config = parse_config(["--config", SINGLE_GPU])[0]
    assert base_of(config.model.llm) is PRESETS["8B"]
    channels, stages = count_cnn(replace(config.model.vision, name="resnet50"), 224)
    assert channels == 2048 and sum(products for products, _, _ in stages) == pytest.approx(4.09e9, rel=0.01)
    with pytest.raises(UserError, match=r"model\.vision: cannot build no_such_cnn"):
        count_cnn(replace(config.model.vision, name="no_such_cnn"), 224)
    assert GPUS["T4"].value_bytes == 4, "it has no bf16"


def test_a_base_without_a_shape_is_one_line(tiny_config: Config) -> None:
    with pytest.raises(UserError, match=r"^model\.llm\.base: no shape of .*give --base"):
        base_of(replace(tiny_config.model.llm, base=str(PROJECT / "tests")))


def test_the_command_prints_a_row_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--config", SINGLE_GPU, "--studies", "1e3", "1e6", "--base", "8B", "70B", "--gpu", "A10", "H100"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 + 8 and all(len(row) == 7 for row in rows)
    found = {tuple(row[:3]): row[3:] for row in rows[2:]}
    assert found["Llama-3.1-70B", "A10", "1,000"][0] == "one case does not fit"
    few, many = (float(found["Llama-3.1-8B", "H100", studies][0]) for studies in ("1,000", "1,000,000"))
    assert many == pytest.approx(1000 * few, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--studies -1", "--studies: must be more than 0"), ("--days 0", "--days: must be more than 0"),
     ("--train.epoch 3", r"unknown option --train\.epoch")],
)  # fmt: skip
def test_a_mistake_is_one_line(arguments: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["--config", SINGLE_GPU, *arguments.split()])


def test_the_collator_makes_what_a_plan_guesses(tiny_config: Config, tiny_model) -> None:
    """Guessed without a tokenizer; that of the tests splits words, so its own count is larger."""
    guessed, prompt = guess_tokens(tiny_config, 5), Collator(tiny_model.prompt).prompt
    assert guessed.prompt - guessed.fixed > tiny_model.evidence_tokens
    assert guessed.fixed <= prompt.fixed_tokens
