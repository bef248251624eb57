"""Data and bases that change under the same names: a run resumes only on those that it began with."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.changed_tables import CHANGES, HARMLESS, data, job
from tests.conftest import table_config
from vlm.config import Config, EvaluationConfig
from vlm.data.fingerprint import contents_fingerprint
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.training.run import train
from vlm.training.run_folder import RunFolder

__all__ = ["data", "job"]  # fixtures


def fingerprint(root: Path) -> str:
    return contents_fingerprint(load_cohort(table_config(root)))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_under_the_same_ids_is_seen(name: str, data: Path) -> None:
    before = fingerprint(data), load_cohort(table_config(data)).fingerprint
    CHANGES[name](data)
    assert load_cohort(table_config(data)).fingerprint == before[1], "the ids and splits say nothing of it"
    assert fingerprint(data) != before[0]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_means_the_same_is_the_same(name: str, data: Path, tmp_path: Path) -> None:
    before = fingerprint(data)
    HARMLESS[name](data)
    shutil.move(data, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == before


def test_of_many_images_sizes_are_compared(data: Path, monkeypatch) -> None:
    monkeypatch.setattr("vlm.data.fingerprint.MOST_READ", 1000)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    before = fingerprint(data)
    with (data / "images" / "0.png").open("ab") as file:
        file.write(b"x")
    assert fingerprint(data) != before


def test_a_run_resumes_on_the_cases_that_it_began_with_alone(tiny_config: Config, data: Path) -> None:
    config = replace(tiny_config, data=replace(tiny_config.data, root=str(data)))
    folder, cohort = RunFolder(config), load_cohort(config.data)
    known = cohort.fingerprint, contents_fingerprint(cohort)
    folder.create(config, known[0], contents=known[1])
    assert folder.cases.read_text().split() == list(known)
    folder.check(config, known[0], resume=True, contents=known[1])
    CHANGES["every label"](data)
    with pytest.raises(UserError, match="reports, labels, vitals, contexts or images changed under the same ids"):
        folder.check(config, known[0], resume=True, contents=fingerprint(data))
    folder.cases.write_text(known[0] + "\n")  # as an earlier version wrote it
    old = RunFolder(config)
    old.check(config, known[0], resume=True, contents=fingerprint(data))
    assert any("begun by an earlier version; whether reports, labels" in warning for warning in old.warnings)


def test_a_run_resumes_on_the_base_that_it_began_with_alone(tiny_config: Config, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_config.model.llm.base, tmp_path / "base"))
    model = replace(tiny_config.model, llm=replace(tiny_config.model.llm, base=str(base)))
    short = replace(tiny_config.train, max_steps=2)
    config = replace(
        tiny_config, model=model, train=short, evaluation=EvaluationConfig(max_new_tokens=2, ablation=False)
    )
    folder = train(config)
    log, settings = (folder / "log.jsonl").read_text(), (base / "config.json").read_text()
    (base / "config.json").write_text(json.dumps(json.loads(settings) | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match="tiny: the config or tokenizer of the base changed since the run began; put"):
        train(replace(config, train=replace(short, max_steps=4)), resume=True)
    (base / "config.json").write_text(settings)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] += 0.01
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="tiny: the weights of the base changed since the run began; put them back"):
        train(replace(config, train=replace(short, max_steps=4)), resume=True)
    assert (folder / "log.jsonl").read_text() == log


def test_a_run_of_an_earlier_version_goes_on_though_options_came_after_it(tiny_config: Config) -> None:
    """Options of list items too, beside items that are names alone: none of them stood in the earlier config."""
    table = replace(tiny_config.data.table, vitals=["glucose", *tiny_config.data.table.vitals[1:]])
    config = replace(tiny_config, data=replace(tiny_config.data, table=table))
    folder = RunFolder(config)
    folder.create(config, "0" * 64)
    written = yaml.safe_load(folder.config.read_text())
    for vital in written["data"]["table"]["vitals"][1:]:
        for key in ("over_time", "steady", "of", "feature"):
            del vital[key]
    for key in ("time", "origin", "time_unit", "series", "series_of", "measurements"):
        del written["data"]["table"][key]
    folder.config.write_text(yaml.safe_dump(written))
    assert folder.check(config, "0" * 64, resume=True) is None
    changed = replace(table, vitals=["glucose", replace(table.vitals[1], over_time=True), *table.vitals[2:]])
    with pytest.raises(UserError, match=r"data\.table\.vitals.*a resumed run keeps it"):
        folder.check(replace(config, data=replace(config.data, table=changed)), "0" * 64, resume=True)
