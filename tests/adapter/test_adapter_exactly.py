"""The adapter's small parts by value: what a header says, what the Hub's answers mean, what a stranger's folder is."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from vlm import hub_client
from vlm.adapter import validate as reading
from vlm.adapter.layout import FILES, REQUIRED, digest
from vlm.adapter.validate import is_fetched, largest_size, read_header
from vlm.compat import hub_http
from vlm.errors import UserError


def test_a_header_gives_the_shape_of_each_tensor(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"b.x": np.zeros((2, 3), np.float32), "a.y-0": np.zeros(5, np.float16)}, file, {"format": "pt"})
    found = read_header(file)
    assert found == {"b.x": (2, 3), "a.y-0": (5,)}
    file.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert read_header(file) == {}


def test_a_header_may_be_as_long_as_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes((20).to_bytes(8, "little") + b"{}".ljust(20))
    monkeypatch.setattr(reading, "LARGEST_HEADER", 20)
    assert read_header(file) == {}
    monkeypatch.setattr(reading, "LARGEST_HEADER", 19)
    with pytest.raises(UserError, match=r"a\.safetensors: broken safetensors file: a header of 20 bytes"):
        read_header(file)
    monkeypatch.setattr(reading, "LARGEST_HEADER", 99)
    file.write_bytes((21).to_bytes(8, "little") + b"{}".ljust(20))
    with pytest.raises(UserError, match=r"broken safetensors file: .* header"):
        read_header(file)


def test_weights_may_be_larger_than_words() -> None:
    assert largest_size("vlm.safetensors") == 8 << 30 and largest_size("config.json") == largest_size("README.md")
    assert largest_size("README.md") == 2 << 20 and reading.LARGEST_HEADER == 8 << 20


@pytest.mark.parametrize(
    ("folder", "fetched"),
    [("hub/models--a--b/snapshots/0123", True), ("hub/models--a--b/blobs/0123", False),
     ("hub/datasets--a--b/snapshots/0123", False), ("a/snapshots/0123", False), ("models--a--b/snapshots", False)],
)  # fmt: skip
def test_a_snapshot_of_the_hub_is_somebody_elses(folder: str, fetched: bool) -> None:
    assert is_fetched(Path(folder)) == fetched


def test_a_digest_is_of_the_weights_and_the_config(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode() * 3)
    wanted = hashlib.sha256(b"".join(name.encode() * 3 for name in REQUIRED)).hexdigest()
    assert digest(tmp_path) == wanted
    (tmp_path / "README.md").write_text("edited")
    (tmp_path / "metrics.json").write_text("{}")
    assert digest(tmp_path) == wanted
    assert REQUIRED == ("adapter_config.json", "adapter_model.safetensors", "vlm.safetensors", "config.json")


def answer(status: int) -> errors.HfHubHTTPError:
    request = hub_http().Request("GET", "https://hub.test")
    return errors.HfHubHTTPError("refused", response=hub_http().Response(status, request=request))


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(401, "the token was refused; log in again with `hf auth login`"),
     (403, "the token may not do this; it needs the right to write there"),
     (412, "it was changed in the meantime; look at it and push again"), (429, "too many requests; try again later"),
     (500, "the Hub is out of order (500); try again later"), (503, "the Hub is out of order (503); try again later"),
     (418, "refused")],
)  # fmt: skip
def test_each_answer_of_the_hub_has_its_meaning(status: int, meaning: str) -> None:
    assert hub_client.reason(answer(status), None) == meaning
    wrapped = RuntimeError("upload failed")
    wrapped.__cause__ = answer(status)
    assert hub_client.reason(wrapped, None) == meaning, "an upload's own error lies below"


def test_what_the_hub_does_not_have_is_said() -> None:
    lost = hub_client.reason(errors.LocalEntryNotFoundError("x"), None)
    assert lost == "it cannot be reached, and the cache does not hold all of it"
    assert hub_client.reason(hub_http().ConnectError("x"), None) == "the connection broke (ConnectError); try again"
    assert hub_client.reason(ValueError("a\n  b"), None) == "a b"
    assert hub_client.reason(RuntimeError("alone"), None) == "alone"
