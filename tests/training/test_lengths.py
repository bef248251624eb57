"""Texts that do not fit into the base: reports are counted and cut, a prompt is refused by the name of its case."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.families import model_on
from tests.training_jobs import one_thread
from vlm import ClinicalVLM
from vlm.config import Config
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.training.lengths import check_lengths
from vlm.training.run import case_dataset, train, try_step


def long_table(config: Config, root: Path, reports: dict[str, str], contexts: dict[str, str]) -> Config:
    """The tests' table with a column of contexts, and with other reports and contexts in some rows."""
    import pandas as pd

    table = pd.read_csv(Path(config.data.root) / "cases.csv", dtype=str, keep_default_na=False)
    table["indication"] = table["case"].map(contexts).fillna("")
    table["findings"] = table["case"].map(reports).fillna(table["findings"])
    table.to_csv(root / "cases.csv", index=False)
    (root / "images").symlink_to(Path(config.data.root) / "images")
    data = replace(config.data, root=str(root), table=replace(config.data.table, context="indication"))
    return replace(one_thread(config), data=data)


def test_reports_that_do_not_fit_are_counted_and_cut(tiny_config: Config, tmp_path: Path, capsys) -> None:
    long = {"c2": "Q" * 600, "c3": "Q" * 450, "c4": "No opacity. " * 3}
    config = long_table(tiny_config, tmp_path, long, {})
    config = replace(config, evaluation=replace(config.evaluation, max_new_tokens=500))
    try_step(config)
    said = capsys.readouterr().err
    model = model_on(config.model.llm.base, config)
    room = 512 - sum(map(len, model.prompt.ids())) - model.evidence_tokens
    assert f"warning: 2 of {said.split(' train reports')[0].rsplit(' ', 1)[1]} train reports are cut" in said
    assert f"case c2 has 601 tokens and room for {room}" in said and "c4" not in said
    assert f"evaluation.max_new_tokens: 500 tokens, and the base has room for {room} after its prompt" in said
    dataset = case_dataset(config, model.spec, load_cohort(config.data), "train").plain()
    example = next(e for e in (dataset[i] for i in range(len(dataset))) if e["id"] == "c2")
    assert Collator(model.prompt)([example])["input_ids"].shape[1] == 512, "the report is cut, the prompt is whole"


def test_a_case_whose_prompt_alone_is_too_long_is_refused_by_name(tiny_config: Config, tmp_path: Path) -> None:
    config = long_table(tiny_config, tmp_path, {}, {"c6": "Q" * 600})
    with pytest.raises(UserError, match=r"case c6: the prompt has \d+ tokens and the base reads 512"):
        try_step(config)
    with pytest.raises(UserError, match="case c6: the prompt has"):
        train(config)


def test_texts_that_fit_are_not_spoken_of(tiny_config: Config, tiny_model: ClinicalVLM, monkeypatch) -> None:
    splits = {"train": case_dataset(tiny_config, tiny_model.spec, load_cohort(tiny_config.data), "train")}
    monkeypatch.setattr(type(tiny_model.prompt), "report_ids", lambda *_: pytest.fail("a short text was read"))
    assert check_lengths(tiny_model.prompt, splits, 96) == []
    tiny_model.prompt.context_length = None
    assert check_lengths(tiny_model.prompt, splits, 10**6) == []
