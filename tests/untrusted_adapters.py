"""Ways in which a stranger may spoil an adapter folder, and what loading it may do and take."""

import copy
import hashlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from tests.conftest import read_json, table_config, tiny_model_config
from vlm.adapter import load, save
from vlm.atomic import MANIFEST
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model

SECONDS, ROOM = 20.0, 300 << 20
"""What one of them may take; the first of the processor, since the machine may be busy."""
MARK = Path(tempfile.gettempdir()) / f"clinical-vlm-{os.getpid()}-was-run"
"""What the code of strangers would leave."""
LORA, REST = "adapter_model.safetensors", "vlm.safetensors"
NORMS = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
LEVELS = ["&a0 [x,x,x,x,x,x,x,x,x]"] + [f"&a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
BOMB = f"[{', '.join(LEVELS)}]"
"""YAML of 500 characters that is ten billion values when it is written out."""
Spoil = Callable[[Path], None]

seen: list[tuple[str, Any]] | None = None
"""What Python's own audit reports while a hostile adapter is loaded."""


def _audit(event: str, arguments: tuple) -> None:
    if seen is not None and event in ("open", "pickle.find_class", "subprocess.Popen", "os.system", "socket.connect"):
        seen.append((event, arguments[0] if arguments else None))


sys.addaudithook(_audit)


@pytest.fixture(scope="module")
def trained(tiny_llm: str, table_root: Path) -> ClinicalVLM:
    config = Config(data=table_config(table_root), model=tiny_model_config(tiny_llm))
    return build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32).eval()


@pytest.fixture(scope="module")
def saved(trained: ClinicalVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(trained, tmp_path_factory.mktemp("saved") / "adapter")


@pytest.fixture(scope="module")
def other(trained: ClinicalVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the same kind, with other weights and metrics."""
    changed = copy.deepcopy(trained)
    with torch.no_grad():
        for value in changed.trainable_parameters().values():
            value += 0.01
    return save(changed, tmp_path_factory.mktemp("other") / "adapter", {"auroc": 0.9})


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


class Evil:
    """What unpickling this would do."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {MARK}",)


def config(change: Callable[[dict], object], file: str = "config.json") -> Spoil:
    def spoil(folder: Path) -> None:
        values = read_json(folder / file)
        change(values)
        (folder / file).write_text(json.dumps(values))

    return spoil


def lora(**values: Any) -> Spoil:
    return config(lambda c: c.update(values), "adapter_config.json")


def part(name: str, /, **values: Any) -> Spoil:
    """A change of one part of the model's options."""
    return config(lambda c: c["model"][name].update(values))


def pattern(boolean: bool = False, **ranks: int) -> Spoil:
    """Ranks by layer in both configs; in PEFT's as truth values, which are no numbers."""

    def spoil(folder: Path) -> None:
        part("llm", rank_pattern=ranks)(folder)
        lora(rank_pattern={name: True if boolean else rank for name, rank in ranks.items()})(folder)

    return spoil


def vital(**values: Any) -> Spoil:
    return config(lambda c: c["vitals"][0].update(values))


def statistics(key: str, value: Any) -> Spoil:
    return config(lambda c: c["statistics"][key].__setitem__(0, value))


def raw(file: str, data: bytes) -> Spoil:
    return lambda folder: (folder / file).write_bytes(data) and None


def text(old: str, new: str, file: str = "config.json") -> Spoil:
    """A change that no JSON library would write."""

    def spoil(folder: Path) -> None:
        before = (folder / file).read_text()
        assert old in before
        (folder / file).write_text(before.replace(old, new, 1))

    return spoil


def tensors(header: dict[str, Any] | bytes, data: bytes = b"", file: str = REST) -> Spoil:
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(file, len(head).to_bytes(8, "little") + head + data)


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def edited(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        values = load_file(folder / file)
        change(values)
        save_file(values, folder / file)

    return spoil


def link(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def pipe(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def extra(name: str, data: bytes = b"import os") -> Spoil:
    return lambda folder: (folder / name).write_bytes(data) and None


def base(files: dict[str, Any]) -> Spoil:
    """An adapter whose base is a folder of a stranger's files, beside it."""

    def spoil(folder: Path) -> None:
        place = folder.parent / "base"
        place.mkdir()
        for name, content in files.items():
            (place / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        part("llm", base=str(place))(folder)
        lora(base_model_name_or_path=str(place))(folder)

    return spoil


LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
         "intermediate_size": 8, "vocab_size": 16, "architectures": ["LlamaForCausalLM"]}  # fmt: skip
KERNEL = {"attn_implementation": "evil/kernel"}
READ = LlamaConfig.from_dict(dict(KERNEL))._attn_implementation is not None
KERNEL_REFUSED = "names code on the Hub, evil/kernel" if READ else "no file named model.safetensors"
"""The first Transformers 5 read no kernel from a config, so that only the weights are missing."""
CODE = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.T", None]}
RUNS = f"open({str(MARK)!r}, 'w')".encode()
BROKEN = f"{REST}: broken safetensors file:"
SIZE = '"size": 8'


@contextmanager
def watched() -> Iterator[None]:
    """Fails if what is done here takes time, memory, a pickle, a program or a file elsewhere."""
    global seen
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    seen = []
    try:
        yield
    finally:
        events, seen = seen, None
    took, grown = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert took < SECONDS and grown < ROOM >> 10, f"{took:.1f} s, {grown >> 10} MiB more"
    strange = [
        event for event in events if event[0] != "open" or "passwd" in str(event[1]) or "secret" in str(event[1])
    ]
    assert not strange and not MARK.exists(), strange


def refusal(folder: Path) -> str:
    """The one line in which loading ends."""
    with watched(), pytest.raises(UserError) as error:
        load(folder)
    said = str(error.value)
    assert "\n" not in said and said.isprintable() and len(said) < 1200 and str(folder) in said, said
    return said


def manifest(change: Callable[[dict], object]) -> Spoil:
    """A change of the manifest that is signed again."""

    def spoil(folder: Path) -> None:
        files = read_json(folder / MANIFEST)["files"]
        change(files)
        own = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        text = json.dumps({"format": 1, "files": files, "sha256": own}, indent=2) + "\n"
        (folder / MANIFEST).write_text(text)

    return spoil
