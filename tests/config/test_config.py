"""The config: every YAML reads, every mistake is one line that says what was meant."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlm.compat import needs_bitsandbytes
from vlm.config import Config
from vlm.config.parsing import parse_config, to_yaml
from vlm.config.renamed import RENAMED
from vlm.config.strict import dotted_names
from vlm.errors import UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_yaml_reads_and_survives_a_round_trip(file: Path, tmp_path: Path) -> None:
    config, resume = parse_config(["--config", str(file)])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert parse_config(["--config", str(saved)])[0] == config
    assert not resume


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_builds_its_model_and_trainer(file: Path, tiny_config: Config, tmp_path: Path) -> None:
    """With a tiny random LLM and CNN in place of the weights, and the tiny table in place of the data."""
    from vlm.data.ingest.sources import load_cohort
    from vlm.training.run import RunFolder, build_loop, build_model

    config, _ = parse_config(["--config", str(file), "--run.folder", str(tmp_path)])
    llm = replace(config.model.llm, base=tiny_config.model.llm.base, sha256=None)
    vision = replace(config.model.vision, name="test_efficientnet", weights="random", frozen_stages=0)
    of_own_labels = {"exclusive": [], "label_evidence": {}, "miss_costs": {}}
    fusion = replace(config.model.fusion, **of_own_labels)
    config = replace(config, data=tiny_config.data, model=replace(config.model, llm=llm, vision=vision, fusion=fusion))
    if needs_bitsandbytes("0.50"):  # has 8-bit AdamW on GPUs alone, and says so
        config = replace(config, train=replace(config.train, optimizer="adamw_torch"))
    cohort = load_cohort(config.data)
    model = build_model(config, cohort, torch.device("cpu"), torch.float32)
    loop = build_loop(config, model, cohort, RunFolder(config))
    assert loop.loader.batch_sampler.batch_size * loop.accumulation == config.train.batch_size
    checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in model.base.modules())
    assert checkpointed == config.model.llm.activation_checkpointing


def test_the_example_in_the_readme_is_a_config(tmp_path: Path) -> None:
    """The README's YAML reads, and its columns make a cohort."""
    import re

    from vlm.data.ingest.sources import load_cohort

    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    file = tmp_path / "job.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)[0], encoding="utf-8")
    config, _ = parse_config(["--config", str(file), "--data.root", str(tmp_path)])
    (tmp_path / "png").mkdir()
    (tmp_path / "cases.csv").write_text(
        "file,patient_id,pneumonia,effusion,glucose,bp,sex,findings\n,p1,1,,8.7,145/90,F,Dense shadow.\n"
    )
    row = load_cohort(config.data).dataset[0]
    assert row["vitals"][1:3] == [145, 90] and row["labels"][0] == 1 and row["sections"] == ["Dense shadow."]


def test_single_gpu_is_the_recipe_it_says() -> None:
    config, _ = parse_config(["--config", str(next(path for path in CONFIGS if path.stem == "single_gpu"))])
    assert config.train.precision == "auto", "bf16 where the GPU has it"
    assert config.train.optimizer == "paged_adamw_8bit"
    assert config.train.batch_size == 32 > config.train.micro_batch_size
    assert config.model.llm.quantization == "nf4" and config.model.llm.double_quantization
    assert config.model.llm.activation_checkpointing


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("train: {seed: 3, max_steps: 7}\n")
    config, resume = parse_config(
        ["--config", str(file), "--train.max_steps", "9", "--run.name", "mine", "--data.root", "x", "--resume"]
    )
    assert (config.train.seed, config.train.max_steps, config.run.name, config.data.root, resume) == (
        3,
        9,
        "mine",
        "x",
        True,
    )


OLD = "data: {lanes: 4}\nmodel: {llm: {unpack: never}, vitals: {shown: text}}\n"


def test_old_names_are_read_and_told_by_their_new_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(OLD)
    for _ in range(2):
        config, _ = parse_config(["--config", str(file), "--model.vitals.shown", "none", "--data.lanes=2"])
    assert (config.data.interleave_shards, config.model.llm.dequantize, config.model.vitals.injection) == (
        2,
        "never",
        "none",
    )
    assert parse_config([f"--config={file}"])[0].data.interleave_shards == 4
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if str(file) in line] == [
        f"{file}: data.lanes is now called data.interleave_shards, "
        "model.llm.unpack is now called model.llm.dequantize, model.vitals.shown is now called model.vitals.injection"
    ]
    assert "--data.lanes: data.lanes is now called data.interleave_shards" in told


def test_every_new_name_is_one_of_the_config() -> None:
    names = set(dotted_names(Config))
    assert names >= set(RENAMED.values()) and not names & set(RENAMED)
    assert all(old.rpartition(".")[0] == new.rpartition(".")[0] for old, new in RENAMED.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data: {lanes: 2, interleave_shards: 2}",
            "data.lanes is the old name of data.interleave_shards; leave it out",
        ),
        ("data: {lanes: two}", "data.interleave_shards"),
        ("train: {max_stepz: 3}", "unknown key train.max_stepz; did you mean train.max_steps?"),
        ("max_steps: 3", "unknown key max_steps; did you mean train.max_steps?"),
        ("data: {table: {vitals: [{name: a, unti: b}]}}", "vitals[0].unti; did you mean data.table.vitals[0].unit?"),
        ("train: 3", "train is a mapping"),
        ("train: {seed: x}", "train.seed"),
        ("[1, 2]", "a config is a mapping"),
        ("train: {a: [", "not valid YAML"),
        ("loss: {alpha: 1.5}", "loss.alpha: must be between 0 and 1"),
        ("train: {batch_size: 10, micro_batch_size: 4}", "train.batch_size: must be a multiple"),
        ("run: {name: a/b}", "run.name: must be a plain folder name"),
        ("model: {fusion: {label_words: true, label_token: false}}", "model.fusion.label_words: must be false where"),
        ("model: {fusion: {exclusive: [[a, b]]}}", "model.fusion.exclusive: must be empty where"),
        ("model: {fusion: {label_evidence: {a: [prior]}}}", "model.fusion.label_evidence: must be empty where"),
        ("model: {fusion: {miss_costs: {a: 2}}}", "model.fusion.miss_costs: must be empty where"),
        ("model: {fusion: {label_words: true, miss_costs: {a: 0}}}", "miss_costs: must be label → number from 0.001"),
        ("model: {fusion: {label_words: true, exclusive: [[a, b], [b, c]]}}", "each label once"),
    ],
)
def test_a_wrong_file_is_one_clear_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        parse_config(["--config", str(file)])
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.max_stepz", "3"], "did you mean --train.max_steps?"),
        (["--train.max_steps", "three"], "train.max_steps"),
        (["--train.schedule", "cubic"], "train.schedule"),
        (["--config", "/no/such.yaml"], "/no/such.yaml: cannot read the config"),
    ],
)
def test_a_wrong_option_is_one_clear_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(arguments)
    assert message in str(error.value) and "\n" not in str(error.value)
