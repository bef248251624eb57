"""A signal over HTTP: the same draft as from Python, and every wrong list in one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.conftest import public
from tests.serving import serving_drafts
from tests.signals import beat_train, signal_job
from vlm.adapter import save
from vlm.app.about import Adapter
from vlm.data.ingest.sources import load_cohort
from vlm.inference.engine import ReportEngine
from vlm.training.run import build_model

SIGNAL = beat_train(70).round(4).T.tolist()


@pytest.fixture(scope="module")
def client(tiny_llm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server of an untrained adapter that reads signals."""
    folder = tmp_path_factory.mktemp("signals")
    config = signal_job(tiny_llm, folder)
    model = public(build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)).eval()
    save(model, folder / "adapter")
    with (
        serving_drafts(ReportEngine(model), Adapter.of(folder / "adapter"), tokens=4) as address,
        httpx.Client(base_url=address, timeout=60) as session,
    ):
        session.headers["x-folder"] = str(folder)
        yield session


def test_json_and_form_read_the_same_signal(client: httpx.Client) -> None:
    """Its probabilities differ from those without one, which a warning says."""
    by_json = client.post("/v1/report", json={"signal": SIGNAL, "vitals": {"age": 50}}).json()
    by_form = client.post("/v1/report", files={"signal": (None, json.dumps(SIGNAL)), "age": (None, "50")}).json()
    without = client.post("/v1/report", json={"vitals": {"age": 50}}).json()
    assert by_json["probabilities"] == pytest.approx(by_form["probabilities"], abs=1e-5)
    assert "no signal given" in without["warnings"] and "no signal given" not in by_json["warnings"]
    assert abs(by_json["probabilities"]["fast"] - without["probabilities"]["fast"]) > 1e-5


def test_a_gap_and_another_length_are_said(client: httpx.Client) -> None:
    """A null is a gap."""
    gaps = [[None, *channel[1:100]] for channel in SIGNAL]
    said = " ".join(client.post("/v1/report", json={"signal": gaps}).json()["warnings"])
    assert "gaps" in said and "it has 100 samples, those for training 500" in said


@pytest.mark.parametrize(
    "given",
    [[], [[]], [[1, 2], [3]], [["a"] * 9] * 2, [[True] * 9] * 2, [[1.0] * 9] * 3, [[1.0] * 5000] * 2, [[{}]], [[[1]]]],
)
def test_a_wrong_signal_is_one_line(client: httpx.Client, given: Any) -> None:
    """Empty, unequal, words, another number of channels, too long, too deep."""
    answer = client.post("/v1/report", json={"signal": given})
    assert answer.status_code == 422 and answer.json()["detail"].startswith("signal"), answer.text


@pytest.mark.parametrize("given", ["1", {"a": 1}, "file.csv"])
def test_a_signal_that_is_no_list_is_refused(client: httpx.Client, given: Any) -> None:
    """A name of a file on the server is none either."""
    assert client.post("/v1/report", json={"signal": given}).status_code == 422


def test_the_schema_says_what_the_signal_is(client: httpx.Client) -> None:
    """Channels, rate and length, without the statistics of a patient."""
    assert client.get("/v1/schema").json()["signal"]["channels"] == ["I", "II"]


def test_the_command_reads_a_file(client: httpx.Client, tmp_path: Path) -> None:
    """A wrong one costs no wait: it is refused before the model is loaded."""
    from vlm.errors import UserError
    from vlm.inference.command import draft_case

    adapter = f"{client.headers['x-folder']}/adapter"
    lines = "\n".join(",".join(map(str, row)) for row in beat_train(70).round(4).tolist())
    (tmp_path / "one.csv").write_text(f"I,II\n{lines}\n")
    report = draft_case(adapter, None, "age=50", 4, None, signal=str(tmp_path / "one.csv"))
    assert "no signal given" not in report.warnings and set(report.probabilities) == {"fast"}
    with pytest.raises(UserError, match="no such file of signals"):
        draft_case(adapter, None, "age=50", 4, None, signal=str(tmp_path / "two.csv"))
