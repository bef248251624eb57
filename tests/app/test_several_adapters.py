"""Several adapters of one base in one process: chosen by name, each with its own drafts, the base held once."""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.http_drafts import TOKENS, VITALS, same
from tests.serving import serving
from vlm.adapter import load, save
from vlm.app.about import Adapter, check_together
from vlm.app.api import make_api
from vlm.app.commands import run_serve, serve_options
from vlm.app.serve import open_engines
from vlm.app.served import Served
from vlm.app.service import Limits, Service
from vlm.errors import UserError
from vlm.inference.engine import Engine, ReportEngine

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folders(tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of one base: the second writes other words."""
    other = load(tiny_adapter)
    with torch.no_grad():
        for name, value in other.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.5, generator=torch.Generator().manual_seed(3))
    return [tiny_adapter, save(other, tmp_path_factory.mktemp("ward-8") / "adapter")]


@pytest.fixture(scope="module")
def engines(folders: list[Path]) -> list[Engine]:
    return open_engines(options(folders), folders)


@pytest.fixture(scope="module")
def client(folders: list[Path], engines: list[Engine]) -> Iterator[httpx.Client]:
    limits = Limits(tokens=TOKENS)
    adapters = [Adapter.of(folder) for folder in folders]
    with Service(engines[0], limits) as first, Service(engines[1], limits) as second:
        app = make_api(first, adapters[0], others=[Served(adapters[1], second)])
        with serving(app) as address, httpx.Client(base_url=address, timeout=60) as session:
            yield session


def options(folders: list[Path]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    serve_options(parser)
    return parser.parse_args([word for folder in folders for word in ("--adapter", str(folder))])


def test_the_base_is_held_once(engines: list[Engine]) -> None:
    """Asked before a service drafts, which gives the layers with a LoRA merged weights of their own."""
    first, second = (dict(engine.model.llm.named_parameters()) for engine in engines)  # type: ignore[attr-defined]
    same = {name for name in first if first[name].data_ptr() == second[name].data_ptr()}
    assert {name for name in first if "lora_" not in name} == same


def test_a_request_chooses_its_adapter(client: httpx.Client, folders: list[Path]) -> None:
    names = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert len(names) == 2 and names[1].startswith("ward-8")
    alone = [ReportEngine(load(folder)).predict([(None, VITALS[0])], max_new_tokens=TOKENS)[0] for folder in folders]
    assert alone[0].text != alone[1].text

    def asked(name: str) -> list[dict[str, Any]]:
        message = [{"role": "user", "content": ""}]
        chat = client.post(PATH, json={"model": name, "messages": message, "vitals": VITALS[0]})
        return [client.post("/v1/report", json={"vitals": VITALS[0], "adapter": name}).json(),
                client.post("/v1/report", files={"adapter": (None, name)}, data=VITALS[0]).json(),
                chat.json()["report"]]  # fmt: skip

    with ThreadPoolExecutor(6) as pool:  # both draft at the same time, from the same weights
        for name, answers in zip(names * 3, pool.map(asked, names * 3), strict=True):
            assert all(same(answer, alone[names.index(name)].to_dict()) for answer in answers)
    assert same(client.post("/v1/report", json={"vitals": VITALS[0]}).json(), alone[0].to_dict()), "the first"
    digests = [client.get("/v1/schema", params={"adapter": name}).json()["adapter_digest"] for name in names]
    assert len(set(digests)) == 2 and client.get("/v1/schema").json()["adapter_digest"] == digests[0]
    fhir = client.post("/v1/report", json={"adapter": names[1], "format": "fhir"})
    assert digests[1][:8] in fhir.text and client.get("/healthz").json() == {"status": "ok", "waiting": 0}


def test_an_adapter_that_is_not_served_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/report", json={"adapter": "ward-9"})
    assert answer.status_code == 404 and answer.json()["detail"].startswith("adapter: no 'ward-9' here; GET /v1/models")
    assert client.get("/v1/schema", params={"adapter": "ward-9"}).status_code == 404


def test_what_cannot_be_served_together_is_refused(folders: list[Path]) -> None:
    first, second = (Adapter.of(folder) for folder in folders)
    other = second.config._replace(base_fingerprint="0" * 16)
    with pytest.raises(UserError, match=rf"--adapter {second.name}: trained on another base than .*; serve it alone"):
        check_together([first, Adapter(other, second.software, second.name)])
    with pytest.raises(UserError, match=rf"--adapter {second.name}: trained on another base than .*; serve it alone"):
        check_together([first, Adapter(other, second.software, second.name)])
    with pytest.raises(UserError, match=r"two are named .*; rename a folder"):
        check_together([first, first])
    arguments = options(folders)
    arguments.revision = "main"
    with pytest.raises(UserError, match="--revision: is of one adapter"):
        run_serve(arguments, [])
