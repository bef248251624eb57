"""The encoder of signals: the rate of its cycle, what is shown of it, and a whole job with signals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import public
from tests.signals import LENGTH, RATE, beat_train, signal_job
from vlm.adapter import load, save
from vlm.config import Config, SignalConfig
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.data.signals.signal_spec import SignalSpec
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.model.encoders.signal_cycles import CycleFinder
from vlm.model.encoders.signal_encoder import RateWords, SignalEncoder, digits_of
from vlm.training.run import build_model, case_dataset, train


def spec(**changes: Any) -> SignalSpec:
    """A signal of two channels as `beat_train` draws it."""
    values = {"channels": ["I", "II"], "rate": RATE, "scale": 1.0, "average": 1, "length": LENGTH, "mean": [0.0, 0.0],
              "deviation": [1.0, 1.0]}  # fmt: skip
    return SignalSpec(**{**values, **changes})


def encoder(config: SignalConfig | None = None, **changes: Any) -> SignalEncoder:
    """An untrained encoder into 16 numbers a token."""
    torch.manual_seed(0)
    config = config or SignalConfig(tokens=3, width=8, cycles=[30.0, 200.0])
    return SignalEncoder(config, spec(**changes), lambda names, before=" ": torch.randn(len(names), 16), 16, 0.1).eval()


def batch(*rates: float, jitter: float = 0.0) -> torch.Tensor:
    """Signals of these rates, B × 2 × L."""
    return torch.from_numpy(np.stack([beat_train(rate, n, jitter).T for n, rate in enumerate(rates)]))


@pytest.mark.parametrize("rate", [32, 45, 60, 75, 98, 120, 150, 180])
def test_the_rate_is_counted_from_the_samples(rate: float) -> None:
    """Within 2 a minute, whatever noise and slow wave, and whatever offset and size."""
    finder = CycleFinder(RATE, 30, 200)
    for signals in (batch(rate), 7 * batch(rate) - 3):
        assert abs(float(finder(signals).rate[0]) - rate) < 2


def test_an_irregular_rhythm_has_a_larger_variation() -> None:
    """And noise alone, or a line, changes no rate into infinity."""
    finder = CycleFinder(RATE, 30, 200)
    assert float(finder(batch(70)).variation[0]) < 0.03 < float(finder(batch(70, jitter=0.1)).variation[0])
    for signal in (torch.zeros(1, 2, LENGTH), torch.full((1, 2, LENGTH), torch.nan), torch.ones(1, 2, LENGTH)):
        found = finder(signal)
        assert found.rate.isnan().all() and found.shape.eq(0).all()


def test_a_gap_makes_no_beats() -> None:
    """The rate of what is left is the rate, and no output is NaN."""
    signals = batch(60)
    signals[:, :, 300:] = torch.nan
    signals[:, 1, :50] = torch.nan
    assert abs(float(CycleFinder(RATE, 30, 200)(signals).rate[0]) - 60) < 3
    encoded = encoder()(signals)
    assert encoded.tokens.isfinite().all() and encoded.x.isfinite().all()


def test_the_rate_is_written_as_the_words_of_a_text() -> None:
    """64 is ` rate`, a space, 6, 4 and nothing; without a rate there are no digits."""
    known = {name: torch.randn(16) for name in (" rate", " no rate", " ", *map(str, range(10)))}
    words = RateWords(lambda names, before=" ": torch.stack([known[before + name] for name in names]), 0.1)
    for rate, text in ((64.4, "64"), (104.0, "104"), (7.0, "7"), (0.2, "0")):
        assert digits_of(torch.tensor([rate]))[0].tolist() == [int(d) + 1 for d in text] + [0] * (3 - len(text))
        spelled = [" rate", " ", *text, *[" "] * (3 - len(text))]
        assert torch.allclose(words(torch.tensor([rate]))[0], torch.stack([known[word] for word in spelled]))
    nothing = words(torch.tensor([torch.nan]))[0]
    assert torch.allclose(nothing, torch.stack([known[" no rate"], *[known[" "]] * 4]))


def test_a_missing_signal_is_a_learned_vector_and_gets_a_gradient() -> None:
    """It does not depend on the others of the batch; a signal gets a gradient through the convolutions."""
    model = encoder().train()
    signals = torch.cat([batch(60, 90), torch.full((1, 2, LENGTH), torch.nan)])
    encoded = model(signals)
    assert encoded.tokens.shape == (3, 8, 16) and encoded.x.shape == (3, model.size)
    encoded.x.square().sum().backward()
    assert model.missing_x.grad is not None and model.stem.weight.grad.abs().sum() > 0
    alone = model.eval()(signals[2:])
    assert torch.allclose(alone.x, model(signals).x[2:], atol=1e-5)


@pytest.mark.parametrize("changes", [{"length": 30}, {"rate": 4.0}, {"average": 20}])
def test_rates_that_the_samples_cannot_show_are_refused(changes: dict[str, Any]) -> None:
    """Too short, or too slow; without cycles the same signal is read."""
    with pytest.raises(UserError, match=r"model.signal.cycles: at 200 a minute each has"):
        encoder(**changes)
    assert encoder(SignalConfig(tokens=2, width=4), **changes)(batch(60)[:, :, : changes.get("length", LENGTH)]).x.shape


# --------------------------------------------------------------------------------------- whole job


def build(config: Config) -> Any:
    """A fresh model of a job, as users load it."""
    return public(build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32))


def test_a_job_with_signals_trains_tests_and_drafts(tiny_llm: str, tmp_path: Path) -> None:
    """From the table to the adapter; the adapter drafts from a file as from its numbers, and warns without one."""
    config = signal_job(tiny_llm, tmp_path)
    folder = train(config)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["labels"]["fast"]["auroc"] or metrics
    engine = ReportEngine(load(folder / "adapter"))
    np.save(tmp_path / "one.npy", beat_train(60))
    np.savetxt(tmp_path / "one.csv", beat_train(60), delimiter=",", header="I,II", comments="")
    given = [(None, {"age": 50}, "", "", signal)
             for signal in (tmp_path / "one.npy", tmp_path / "one.csv", beat_train(60).T.tolist(), None)]  # fmt: skip
    reports = engine.predict(given)
    assert reports[0].probabilities == pytest.approx(reports[2].probabilities, abs=1e-6)
    assert reports[0].probabilities == pytest.approx(reports[1].probabilities, abs=1e-4)
    assert "no signal given" in reports[3].warnings and not any("signal" in w for w in reports[0].warnings)
    assert reports[3].probabilities != reports[0].probabilities


def test_a_saved_adapter_reads_signals_as_before(tiny_llm: str, tmp_path: Path) -> None:
    """Its config has the channels and statistics, and its tensors the encoder's."""
    model = build(signal_job(tiny_llm, tmp_path)).eval()
    case = ReportEngine(model).prepare(None, {"age": 50}, signal=beat_train(80))[0]
    again = load(save(model, tmp_path / "adapter"))
    prompts = [Collator(one.prompt, generation=True)([case]) for one in (model, again)]
    first, second = (one.embed_prompt(prompt)[1] for one, prompt in zip((model, again), prompts, strict=True))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.tokens, second.tokens)
    assert again.spec.signal == model.spec.signal


def _write(file: Path, change: Any) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["signal"].update(length=10**9),
        lambda values: values["signal"].update(channels=["a"] * 2),
        lambda values: values["signal"].update(channels=[f"c{n}" for n in range(17)]),
        lambda values: values["signal"].update(channels=["a\u202eb", "c"]),
        lambda values: values["signal"].update(rate=0),
        lambda values: values["signal"].update(rate="fast"),
        lambda values: values["signal"].update(deviation=[0, 1]),
        lambda values: values["signal"].update(mean=[1e300, 1]),
        lambda values: values["signal"].update(mean=[1]),
        lambda values: values["signal"].update(average=0),
        lambda values: values["signal"].update(code="x"),
        lambda values: values.update(signal=None),
        lambda values: values.update(signal=[1]),
        lambda values: values.pop("signal"),
        lambda values: values["model"]["signal"].update(width=10**6),
        lambda values: values["model"]["signal"].update(width=1024),
        lambda values: values["model"]["signal"].update(tokens=0),
        lambda values: values["model"]["signal"].update(cycles=[1e-300, 1e-299]),
        lambda values: values["model"]["signal"].update(cycles=[200, 30]),
        lambda values: values["model"]["signal"].update(cycles=[1]),
    ],
)
def test_an_adapter_with_a_hostile_signal_is_one_line(tiny_llm: str, tmp_path: Path, change: Any, saved: Path) -> None:
    """Sizes, names, rates and statistics come from outside."""
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(saved, folder)
    (folder / "manifest.json").unlink(missing_ok=True)
    _write(folder / "config.json", lambda values: (values.pop("sealed", None), change(values)))
    for file in folder.iterdir():
        if "sha256" in file.name.lower() or file.suffix == ".sha256":
            file.unlink()
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.fixture(scope="module")
def saved(tiny_llm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved adapter that reads signals, untrained."""
    folder = tmp_path_factory.mktemp("signals")
    return save(build(signal_job(tiny_llm, folder)), folder / "adapter")


def test_a_control_run_withholds_the_signal(tiny_llm: str, tmp_path: Path) -> None:
    """Its cases have none, and its reports are as they were."""
    config = signal_job(tiny_llm, tmp_path)
    config = replace(config, data=replace(config.data, withhold=["signal"]))
    model = build(config)
    cases = case_dataset(config, model.spec, load_cohort(config.data), "test")
    assert cases[0]["signal"].isnan().all() and cases[0]["report"].startswith("Heart rate")


def test_a_model_without_signals_refuses_one(tiny_model: Any) -> None:
    """In one line."""
    with pytest.raises(UserError, match="signal: the adapter was trained without signals"):
        ReportEngine(tiny_model).prepare(None, {}, signal=[1.0, 2.0])
