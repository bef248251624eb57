"""What must hold for any input: names of vitals, batches of any texts, adapters of any numbers."""

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vlm.adapter import describe, load, save, split_state
from vlm.config import PromptConfig, VitalConfig
from vlm.data.collate import IGNORED, Collator
from vlm.data.prompt import Prompt
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics
from vlm.errors import UserError
from vlm.model.calibration import Calibration
from vlm.model.clinical_vlm import ClinicalVLM

EVIDENCE = 3
names = st.text(string.ascii_letters + string.digits + "_ -é", min_size=1, max_size=12)
limits = st.lists(st.floats(-1e6, 1e6), max_size=3)
numbers = st.builds(VitalConfig, names, st.sampled_from(["", "mmol/L", "%"]), st.lists(names, max_size=2),
                    plausible=limits, reference=limits)  # fmt: skip
spellings = st.sampled_from([str, str.upper, str.lower, lambda name: name.replace("_", " "), lambda name: f" {name} "])
texts = st.text(max_size=40)


@given(st.lists(numbers, min_size=1, max_size=4), spellings, st.data())
def test_a_schema_is_refused_in_one_line_or_finds_each_vital_by_each_of_its_names(vitals, spell, data) -> None:
    try:
        schema = VitalsSchema(tuple(vitals))
    except UserError as error:
        assert "\n" not in str(error)
        return
    for position, vital in enumerate(vitals):
        assert all(schema.position(spell(name)) == position for name in (vital.name, *vital.aliases))
    given_values = {v.name: data.draw(st.none() | st.floats(-1e5, 1e5, width=32)) for v in vitals}
    x, implausible = schema.parse(given_values)
    for vital, value, read in zip(vitals, given_values.values(), x, strict=True):
        inside = not vital.plausible or (value is not None and vital.plausible[0] <= value <= vital.plausible[1])
        assert (vital.name in implausible) == (value is not None and not inside)
        assert np.isnan(read) if value is None or not inside else read == np.float32(value)


@given(st.lists(st.none() | st.floats(-1e9, 1e9, width=32), max_size=30), st.integers(1, 12))
def test_statistics_of_any_column_are_those_that_a_model_can_be_built_with(
    column: list[float | None], bins: int
) -> None:
    schema = VitalsSchema((VitalConfig("x"),))
    values = np.array([[np.nan if value is None else value] for value in column], np.float64).reshape(-1, 1)
    VitalsStatistics.fit(schema, values, bins).check(schema)


@pytest.fixture(scope="module")
def prompt(tiny_llm: str) -> Prompt:
    return Prompt(AutoTokenizer.from_pretrained(tiny_llm), PromptConfig(), evidence_tokens=EVIDENCE)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(st.tuples(texts, texts), min_size=1, max_size=5), generation=st.booleans())
def test_a_row_of_a_batch_depends_on_no_other(prompt: Prompt, cases: list[tuple[str, str]], generation: bool) -> None:
    rows = [{"id": "a", "pixel_values": torch.zeros(1, 3, 8, 8), "has_image": True, "vitals": torch.tensor([1.0]),
             "image_roles": torch.zeros(1, 3),
             "targets": torch.tensor([1.0]), "report": report, "context": context}
            for context, report in cases]  # fmt: skip
    collate = Collator(prompt, generation=generation)
    batch = collate(rows)
    for number, (row, (_, report)) in enumerate(zip(rows, cases, strict=True)):
        alone, there = collate([row]), batch["attention_mask"][number].bool()
        for name in ("input_ids", "evidence_mask", "labels"):
            assert torch.equal(batch[name][number][there], alone[name][0])  # type: ignore[literal-required]
            outside = batch[name][number][~there]  # type: ignore[literal-required]
            fill = {"input_ids": prompt.pad_id, "evidence_mask": False, "labels": IGNORED}[name]
            assert (outside == fill).all()
        assert batch["evidence_mask"][number].sum() == EVIDENCE
        wanted = [] if generation or not report else prompt.report_ids(report)
        assert batch["labels"][number][batch["labels"][number] != IGNORED].tolist() == wanted


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-6, 1e4), temperature=st.floats(0.05, 20))
def test_an_adapter_of_any_numbers_comes_back_to_the_bit(
    tiny_model: ClinicalVLM, tmp_path: Path, seed: int, scale: float, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in tiny_model.trainable_parameters().values():
            value.copy_(scale * torch.randn(value.shape, generator=generator))
    tiny_model.calibration = Calibration(temperature, 3, 4)
    again = load(save(tiny_model, tmp_path / "adapter"), dtype=torch.float32)
    for ours, theirs in zip(split_state(tiny_model), split_state(again), strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert describe(again) == describe(tiny_model) and again.calibration == tiny_model.calibration
