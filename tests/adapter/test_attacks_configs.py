"""Configs and cards that would cost time or memory when they are parsed: each ends in one line, within bounds."""

from pathlib import Path

import pytest

from tests.untrusted_adapters import BOMB, watched
from vlm.config.parsing import parse_config
from vlm.errors import UserError

CONFIGS: dict[str, tuple[str, str]] = {
    "aliases": (f"train: {BOMB}", "not valid YAML: its aliases stand for more than 4,194,304 characters"),
    "merges": ("a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n"
               for n in range(1, 10)), "its aliases stand for more than"),
    "circle": ("train: &a [*a]", "its aliases stand for more than"),
    "long texts": ("a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 100) + "]", "its aliases stand for"),
    "depth": ("[" * 100_000, "not valid YAML: nested too deeply"),
    "size": ("#" * 600_000, "cannot read the config: larger than 512 KiB"),
    "digits": ("train: {seed: " + "9" * 100_000 + "}", "is too long a number"),
    "sexagesimal": ("train: {seed: 1" + ":59" * 50_000 + "}", "is too long a number"),
    "python": ("train: !!python/object/apply:os.system ['touch x']", "not valid YAML: could not determine"),
    "text in a number": (f"train: {{seed: '{BOMB}'}}", "train.seed: must be a whole number, not"),
    "short text in a number": ("train: {seed: '[&a [1], *a]'}", "train.seed: must be a whole number, not"),
    "text in a list": (f"train: {{report_to: '{BOMB}'}}", "train.report_to: must be a list, not"),
    "text in a choice of two": (f"train: {{max_steps: '{BOMB}'}}", "train.max_steps: must be a whole number, not"),
    "text in a vital": (f"data: {{table: {{vitals: [{{name: a, plausible: '{BOMB}'}}]}}}}",
                        "data.table.vitals[0].plausible: must be a list, not"),
    "text in a vital's range": (f"data: {{table: {{vitals: [{{name: a, plausible: ['{BOMB}']}}]}}}}",
                                "data.table.vitals[0].plausible[0]: must be a number, not"),
    "text in a source": (f"data: {{sources: [{{weight: '{BOMB}'}}]}}", "data.sources[0].weight: must be a number"),
    "text for a conversion": (f"data: {{table: {{vitals: [{{name: a, accepts: {{b: '{BOMB}'}}}}]}}}}",
                              "data.table.vitals[0].accepts.b: must be a list, not"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_ends_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = CONFIGS[name]
    file = tmp_path / "job.yaml"
    file.write_text(content)
    with watched(), pytest.raises(UserError) as error:
        parse_config(["--config", str(file)])
    said = str(error.value)
    assert message in said and "\n" not in said and len(said) < 1000, said


def test_a_config_may_use_anchors_and_numbers_as_yaml_has_them(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "train: {learning_rate: 1e-3, lora_learning_rate: &rate 2e-4, vision_learning_rate: *rate, seed: '3'}\n"
        "model: {prompt: {system: '&a *b " + "x" * 300 + "'}}\n"
    )
    config = parse_config(["--config", str(file)])[0]
    train = config.train
    assert (train.learning_rate, train.lora_learning_rate, train.vision_learning_rate) == (1e-3, 2e-4, 2e-4)
    assert train.seed == 3 and config.model.prompt.system.startswith("&a *b xxx")


@pytest.mark.parametrize("head", [f"a: {BOMB}", "a: &a [*a]", "[" * 100_000])
def test_a_card_is_measured_before_it_is_parsed(head: str) -> None:
    from vlm.adapter.metadata import CardDetails, with_details

    with watched(), pytest.raises(UserError, match=r"README\.md: the Hub cannot read the card's head"):
        with_details(f"---\n{head}\n---\n# Card\n", CardDetails(), "README.md")


def test_a_runs_config_is_measured_before_it_is_parsed(tmp_path: Path) -> None:
    from vlm.evaluation.compare import _options
    from vlm.training.monitor.run_state import _read_config

    (tmp_path / "config.yaml").write_text(f"train: {BOMB}")
    for read in (lambda: _options(tmp_path), lambda: _read_config(tmp_path / "config.yaml")):
        with watched(), pytest.raises(UserError, match="its aliases stand for more than"):
            read()
