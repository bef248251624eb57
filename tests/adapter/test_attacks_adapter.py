"""Adapters that would cost time, memory or a visit elsewhere: each ends in one line, within bounds."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.hub_server import hub  # noqa: F401
from tests.untrusted_adapters import (  # noqa: F401
    BOMB,
    LORA,
    REST,
    Spoil,
    config,
    folder,
    lora,
    manifest,
    part,
    refusal,
    saved,
    trained,
    vital,
)
from vlm.adapter import bounds, load, read_config, resolve, save
from vlm.adapter import hub as hub_room
from vlm.adapter import validate as reading
from vlm.atomic import write_manifest
from vlm.config import Config
from vlm.errors import UserError

WRONG_TYPES: dict[str, tuple[Spoil, str]] = {
    "bomb for a rank": (part("llm", lora_rank=BOMB), "model.llm.lora_rank|llm.lora_rank: must be a whole number, not"),
    "bomb for a share": (part("llm", lora_dropout=BOMB), "llm.lora_dropout: must be a number, not"),
    "bomb for a list": (part("llm", lora_targets=BOMB), "llm.lora_targets: must be a list, not"),
    "bomb for a choice": (part("llm", dequantize=BOMB), "llm.dequantize: must be auto or always or never, not"),
    "bomb for a flag": (part("vision", train=BOMB), "vision.train: must be true or false, not"),
    "bomb for a part": (config(lambda c: c["model"].update(fusion=BOMB)), "fusion is a mapping of keys, not"),
    "bomb for a model": (config(lambda c: c.update(model=BOMB)), "the config is a mapping of keys, not"),
    "bomb for an image": (config(lambda c: c["image"].update(size=BOMB)), "size: must be a whole number, not"),
    "bomb for a temperature": (config(lambda c: c["calibration"].update(temperature=BOMB)), "must be a number, not"),
    "bomb for a range": (vital(plausible=BOMB), "plausible: must be a list, not"),
    "bomb in a range": (vital(plausible=[BOMB, 1]), r"plausible\[0\]: must be a number, not"),
    "bomb for conversions": (vital(accepts=BOMB), "accepts: must be a mapping of keys, not"),
    "bomb in a conversion": (vital(accepts={"mg/dL": BOMB}), "accepts.mg/dL: must be a list, not"),
    "bomb in statistics": (config(lambda c: c["statistics"].update(centre=BOMB)), "is no list of numbers"),
    "edges beyond 32 bits": (
        config(lambda c: c["statistics"]["edges"][0].__setitem__(0, -1e308)),
        "no list of numbers below 1e.30",
    ),
    "bomb for labels": (config(lambda c: c.update(labels=BOMB)), "is no list of names"),
    "bomb for a hash": (
        config(lambda c: c.update(base_fingerprint=[BOMB])),
        "base_fingerprint: .* is no text",
    ),
    "text for a number": (part("vision", grid="2"), "vision.grid: must be a whole number, not '2'"),
    "part of a whole number": (part("vision", grid=2.0), "vision.grid: must be a whole number, not '2.0'"),
    "truth for a number": (part("vision", grid=True), "vision.grid: must be a whole number, not 'True'"),
    "number for a truth": (part("fusion", z_token=1), "fusion.z_token: must be true or false, not '1'"),
    "text for a truth": (part("vision", train="yes"), "vision.train: must be true or false, not 'yes'"),
    "nothing for a number": (part("llm", lora_rank=None), "llm.lora_rank: must be a whole number, not 'None'"),
    "number for a text": (part("prompt", system=7), "prompt.system: must be a text, not '7'"),
    "number for a text or nothing": (part("llm", revision=7), "llm.revision: must be a text or null, not '7'"),
    "list for a choice": (
        part("llm", quantization=["nf4"]),
        "must be nf4 or fp4 or int8 or none, not a list",
    ),
    "mapping for a list": (vital(aliases={"a": 1}), "aliases: must be a list, not a mapping of keys"),
    "number in a list": (vital(categories=["F", 1]), r"categories\[1\]: must be a text, not '1'"),
    "list for a number": (vital(reference=[[1], 2]), r"reference\[0\]: must be a number, not a list"),
}

REPOSITORIES = ["hf_hub:evil/cnn", "hf-hub:evil/cnn", "local-dir:/etc", "file:///etc/cnn", "https://evil/cnn",
                "evil/cnn", "../cnn", "resnet18\n", ""]  # fmt: skip

GIANTS: dict[str, tuple[Spoil, str]] = {
    "cnn of a billion": (part("vision", name="vit_giant_patch14_dinov2"), "vision.name: .* takes no images of 32"),
    "cnn of four billion": (part("vision", name="eva02_enormous_patch14_clip_224"), "takes no images of 32"),
    "transformer of a billion": (part("vision", name="vit_giant_patch16_gap_224"), "vlm.safetensors: tensor "),
    "layers of an encoder": (
        part("vision", name="transformers:vit", options='{"num_hidden_layers": 1000000}'),
        "num_hidden_layers: must be at most 128, not 1000000",
    ),
    "width of an encoder": (
        part("vision", name="transformers:vit", options='{"hidden_size": 49152, "patch_size": 16}'),
        "vlm.safetensors: tensor ",
    ),
    "depths of an encoder": (
        part("vision", name="transformers:swin", options='{"depths": [128, 128, 128, 128, 128]}'),
        "depths: must be at most 512 in all",
    ),
    "larger cnn": (part("vision", name="convnext_xxlarge"), "vlm.safetensors: tensor "),
    "vector times grid": (part("vision", summary_grid=16), "tensor joint.from_image.weight has another shape"),
    "image tokens": (part("vision", grid=32), "tensor vision.position has another shape"),
    "length of z": (part("fusion", size=16_384), "vlm.safetensors: tensor .* has another shape"),
    "vitals tokens": (part("vitals", tokens=256), "vlm.safetensors: tensor vitals"),
    "labels": (config(lambda c: c.update(labels=[f"label {n}" for n in range(1000)])), "tensor .* has another shape"),
    "categories": (config(lambda c: c["vitals"][3].update(categories=[f"c{n}" for n in range(1000)])), "vitals"),
    "all categories": (config(lambda c: c.update(vitals=[v | {"categories": ["c"] * 1024} for v in c["vitals"] * 2])),
                       "vitals: more than 4,096 categories"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_value_has_the_type_of_its_field_before_anything_reads_it(name: str, folder: Path) -> None:  # noqa: F811
    spoil, message = WRONG_TYPES[name]
    spoil(folder)
    write_manifest(folder)
    said = refusal(folder)
    assert "config.json: " in said, said
    assert re.search(message, said), said


@pytest.mark.parametrize("name", REPOSITORIES)
def test_an_adapter_names_no_cnn_of_another_repository(name: str, folder: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("timm was asked"))
    part("vision", name=name)(folder)
    write_manifest(folder)
    assert "config.json: model.vision.name: timm has no model" in refusal(folder)


@pytest.mark.parametrize("name", GIANTS)
def test_no_part_is_built_that_the_file_does_not_hold(name: str, folder: Path) -> None:  # noqa: F811
    spoil, message = GIANTS[name]
    spoil(folder)
    write_manifest(folder)
    said = refusal(folder)
    assert re.search(message, said), said


PINS = {
    "no commit": ({"weights": "hf-hub:user/cnn", "sha256": "0" * 64}, "write hf-hub:ORG/NAME@COMMIT"),
    "a branch": ({"weights": "hf-hub:user/cnn@main", "sha256": "0" * 64}, "write hf-hub:ORG/NAME@COMMIT"),
    "no hash": ({"weights": f"hf-hub:user/cnn@{'a' * 40}"}, "sha256: is 64 digits"),
    "another file": ({"weights": f"hf-hub:user/cnn@{'a' * 40}/model.pth", "sha256": "0" * 64}, "write hf-hub:"),
    "code": ({"options": '{"auto_map": {"AutoModel": "evil--x.y"}}'}, "auto_map' is no option of an architecture"),
    "a kernel": ({"options": '{"attn_implementation": "evil/kernel"}'}, "is no option of an architecture"),
    "a file": ({"options": '{"act_layer": "../../etc"}'}, "is no option of an architecture"),
    "a checkpoint": ({"options": '{"checkpoint_path": "x.pth"}'}, "is no option of an architecture"),
    "no JSON": ({"options": "{"}, "model.vision.options: is no JSON"),
    "a list": ({"options": "[1]"}, "must be a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", PINS)
def test_an_encoder_is_pinned_and_its_options_are_of_an_architecture(name: str, folder: Path, monkeypatch) -> None:  # noqa: F811
    changes, message = PINS[name]
    monkeypatch.setattr("vlm.model.encoders.locate.cached_file", lambda *_, **__: pytest.fail("the Hub was asked"))
    part("vision", train=False, **changes)(folder)
    write_manifest(folder)
    said = refusal(folder)
    assert message in said, said


def test_a_cnn_that_would_be_fetched_is_bounded(folder: Path, monkeypatch) -> None:  # noqa: F811
    part("vision", weights="pretrained", train=False)(folder)
    rest = {name: value for name, value in load_file(folder / REST).items() if not name.startswith("vision.cnn.")}
    save_file(rest, folder / REST)
    write_manifest(folder)
    monkeypatch.setattr(bounds, "MOST_PARAMETERS", 50_000)
    assert "model.vision.name: test_efficientnet has " in refusal(folder)


def test_a_lora_on_layers_that_its_file_does_not_hold_is_not_made(folder: Path, monkeypatch) -> None:  # noqa: F811
    part("llm", lora_rank=1024, lora_targets=["all-linear"])(folder)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_A.weight": torch.zeros(1024, 64), f"{name}.lora_B.weight": torch.zeros(64, 1024)},
              folder / LORA)  # fmt: skip
    lora(r=1024, target_modules=["q_proj"])(folder)
    write_manifest(folder)
    monkeypatch.setattr("vlm.model.clinical_vlm.add_lora", lambda *a, **k: pytest.fail("it was made"))
    assert f"{LORA}: holds 131,072 values, the LoRA of its base has 2,097,152" in refusal(folder)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("file", [REST, LORA, "config.json", "metrics.json"])
def test_a_file_with_a_hole_of_a_terabyte_is_not_read(file: str, sealed: bool, folder: Path) -> None:  # noqa: F811
    os.truncate(folder / file, 1 << 40)
    if sealed:  # a stranger may write any manifest
        manifest(lambda files: files[file].update(size=1 << 40))(folder)
    assert f"{file}: larger than " in refusal(folder)


def test_a_size_is_compared_before_a_file_is_read(folder: Path, monkeypatch) -> None:  # noqa: F811
    os.truncate(folder / REST, 4 << 30)
    size = f"{REST}: damaged: {4 << 30} bytes"
    assert size in refusal(folder)


# ------------------------------------------------------------------------------------ the Hub


def test_no_file_of_a_hub_is_fetched_before_its_size_is_known(hub, folder: Path, monkeypatch) -> None:  # noqa: F811
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.add("evil/large", files | {"run.py": b"x", "pytorch_model.bin": b"x"})
    monkeypatch.setattr(reading, "LARGEST_TENSORS", 10_000)
    with pytest.raises(UserError, match=r"evil/large: (adapter_model|vlm)\.safetensors: .* more than the 0 MiB"):
        resolve("evil/large")
    assert not [line for line in hub.seen if line.startswith("GET") and "/resolve/" in line], "nothing was fetched"
    monkeypatch.undo()


def test_only_files_of_an_adapter_are_fetched(hub, folder: Path) -> None:  # noqa: F811
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.add("evil/more", files | {"run.py": b"x", "pytorch_model.bin": b"x", "sub/config.json": b"{}"})
    resolve("evil/more")
    fetched = {line.rpartition("/")[2] for line in hub.seen if line.startswith("GET") and "/resolve/" in line}
    assert not fetched & {"run.py", "pytorch_model.bin"} and "/sub/" not in " ".join(hub.seen)


def test_nothing_is_fetched_where_no_size_was_told(hub, folder: Path, monkeypatch) -> None:  # noqa: F811
    hub.add("evil/mute", {file.name: file.read_bytes() for file in folder.iterdir()})
    monkeypatch.setattr(hub_room, "_check_sizes", lambda *a: False)
    with pytest.raises(UserError, match="it cannot be reached, and the cache does not hold all of it"):
        resolve("evil/mute")


# ------------------------------------------------------------------------------------ a CNN of a repository, one's own


def test_an_adapter_carries_a_small_cnn_of_a_repository_and_names_the_architecture_alone(
    tiny_config: Config, tmp_path: Path, monkeypatch
) -> None:
    from vlm.data.ingest.sources import load_cohort
    from vlm.training.run import build_model

    def adapter_of(options: dict[str, Any], name: str) -> tuple[Any, Path]:
        place = tmp_path / name / "snapshots" / ("a" * 40)
        place.mkdir(parents=True)
        own = {"input_size": [options.get("in_chans", 3), 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}
        written = {"architecture": "test_efficientnet", "model_args": options, "pretrained_cfg": own}
        (place / "config.json").write_text(json.dumps(written))
        cnn = timm.create_model("test_efficientnet", num_classes=0, **options)
        save_file(cnn.state_dict(), place / "model.safetensors")

        def fetch(_: str, file: str, **__: Any) -> str | None:
            return str(place / file) if (place / file).exists() else None

        monkeypatch.setattr("vlm.model.encoders.locate.cached_file", fetch)
        vision = replace(tiny_config.model.vision, name="hf_hub:user/cnn", weights="pretrained", train=False)
        config = replace(tiny_config, model=replace(tiny_config.model, vision=vision))
        model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32).eval()
        adapter = save(model, tmp_path / f"adapter of {name}")
        monkeypatch.setattr("vlm.model.encoders.locate.cached_file", lambda *_, **__: pytest.fail("the Hub was asked"))
        return model, adapter

    for options, name in (({}, "plain"), ({"in_chans": 1}, "grey")):
        model, adapter = adapter_of(options, name)
        read = read_config(adapter)
        named = read.model.vision
        assert (named.name, named.weights, named.sha256) == ("test_efficientnet", "random", None)
        assert named.options == ('{"in_chans":1}' if options else "")
        assert (read.spec.image.mean, read.spec.image.channels) == (0.5, options.get("in_chans", 3))
        again = load(adapter, device=torch.device("cpu"), dtype=torch.float32)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
