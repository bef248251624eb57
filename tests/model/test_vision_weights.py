"""Names and weights of image encoders: folders, repositories and pins, and what is refused in one line."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.encoder_jobs import CPU, built, check_family, job
from tests.encoders import snapshot_hub, write_timm, write_transformers
from vlm.adapter import load, read_config, save
from vlm.config import Config, VisionConfig
from vlm.data.images.image import to_pixel_values
from vlm.errors import UserError
from vlm.model.encoders.build import image_pictures
from vlm.model.vision import ImageEncoder


def test_timms_own_folder_is_read_at_another_size_too(tmp_path: Path) -> None:
    model = write_timm("test_vit", tmp_path / "vit", img_size=64)
    for size in (64, 32, 96):
        encoder = ImageEncoder(VisionConfig(str(tmp_path / "vit"), grid=2, summary_grid=1), size, 8, 1.0, True)
        blocks = {name: value for name, value in model.state_dict().items() if name.startswith("blocks.")}
        assert all(torch.equal(value, encoder.cnn.state_dict()[name]) for name, value in blocks.items())
        assert encoder.cnn.pos_embed.shape[1] == (size // 16) ** 2 + 1
        assert encoder.config.name == "test_vit" and encoder.config.weights == "random"


def test_a_model_of_open_clip_is_its_vision_half(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0, global_pool="", img_size=32)
    clip = {f"visual.trunk.{name}": value for name, value in model.state_dict().items()}
    save_file({**clip, "text.a": torch.zeros(2)}, tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": {"vision_cfg": {"timm_model_name": "test_vit", "image_size": 32}},
              "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3}}  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    vision = VisionConfig(str(tmp_path), grid=2, summary_grid=1)
    encoder = ImageEncoder(vision, 32, 8, 1.0, True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in encoder.cnn.state_dict().items())
    pictures, line = image_pictures(vision, 0)
    assert (pictures.size, pictures.mean, pictures.std, pictures.interpolation) == (32, 0.4, 0.2, "bicubic")
    assert "its open_clip_config.json names a model of timm" in line


def test_a_large_frozen_encoder_is_named_by_commit_and_hash_and_fails_closed(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "hub" / "org--rad" / "snapshots" / ("c" * 40)
    write_transformers("RAD-DINO (DINOv2)", home)
    monkeypatch.setattr("vlm.model.encoders.locate.cached_file", snapshot_hub(tmp_path / "hub"))
    monkeypatch.setattr("vlm.model.encoders.build.SMALL", 10)
    config = job(tiny_config, 32, name="hf-hub:org/rad", train=False)
    model = built(config)
    adapter = save(model, tmp_path / "adapter")
    held = load_file(adapter / "vlm.safetensors")
    assert not any(name.startswith("vision.cnn.") for name in held)
    written = read_config(adapter).model.vision
    assert written.name == "transformers:dinov2" and written.weights == f"hf-hub:org/rad@{'c' * 40}"
    again = load(adapter, device=CPU, dtype=torch.float32)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    tensors = load_file(home / "model.safetensors")
    tensors["layernorm.bias"] += 1e-3
    save_file(tensors, home / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"SHA-256 of hf-hub:org/rad@c+ is \w+, the config says \w+; not used"):
        load(adapter)


def test_timms_own_weights_of_a_frozen_encoder_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "hub" / "timm--test_vit.r160_in1k" / "snapshots" / ("c" * 40)
    write_timm("test_vit", place)
    file = str(place / "model.safetensors")
    monkeypatch.setattr("vlm.model.encoders.locate.cached_file", snapshot_hub(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: file)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: load_file(file))
    vision = VisionConfig("test_vit", train=False, grid=2, summary_grid=1)
    first = ImageEncoder(vision, 160, 8, 1.0, True)
    assert first.config.weights == f"hf-hub:timm/test_vit.r160_in1k@{'c' * 40}" and first.config.sha256
    second = ImageEncoder(first.config, 160, 8, 1.0, True)
    assert second.config == first.config
    assert all(torch.equal(value, second.cnn.state_dict()[name]) for name, value in first.cnn.state_dict().items())
    wrong = replace(first.config, sha256="0" * 64)
    with pytest.raises(UserError, match="the config says 0000"):
        ImageEncoder(wrong, 160, 8, 1.0, True)


def test_a_one_channel_encoder_reads_values_of_its_own_scale(tiny_config: Config, tmp_path: Path) -> None:
    """As of torchxrayvision: one channel of -1024 to 1024."""
    grey = timm.create_model("densenet121", in_chans=1, num_classes=18, growth_rate=4, block_config=(1, 1, 1, 1))
    save_file(grey.state_dict(), tmp_path / "grey.safetensors")
    options = '{"block_config": [1, 1, 1, 1], "growth_rate": 4}'
    scale = {"mean": 0.5, "std": 1 / 2048}
    config = job(tiny_config, 32, name="densenet121", weights=str(tmp_path / "grey.safetensors"), options=options,
                 **scale)  # fmt: skip
    model = built(config)
    assert model.spec.image.channels == 1 and model.vision.cnn.features.conv0.in_channels == 1
    pixels = to_pixel_values(np.array([[0, 255]], np.uint8), model.spec.image)
    assert pixels.shape == (1, 1, 2) and pixels.ravel().tolist() == pytest.approx([-1024, 1024])
    check_family(config, tmp_path)
    assert json.loads((tmp_path / "adapter" / "config.json").read_text())["image"]["channels"] == 1
    with pytest.raises(UserError, match=r"model\.vision\.weights: .* does not fit densenet121"):
        built(replace(config, model=replace(config.model, vision=replace(config.model.vision, channels=3))))


# ----------------------------------------------------------------------------------- what is refused


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such folder": ({"name": "./nowhere"}, r"model\.vision\.name: \./nowhere: no such folder"),
    "a repository unmarked": ({"name": "org/name"}, "a repository is written hf-hub:org/name"),
    "an address": ({"name": "https://org/name"}, "write a name of timm, hf-hub:ORG/NAME or a folder"),
    "a text model": ({"name": "transformers:bert", "weights": "random"}, "it reads no images"),
    "no type": ({"name": "transformers:nothing", "weights": "random"}, "Transformers has no model type nothing"),
    "shuffled patches": ({"name": "transformers:vit_mae", "weights": "random"}, "shuffles its patches"),
    "queries": ({"name": "transformers:yolos", "weights": "random"}, "model.vision"),
    "patches of 14": ({"name": "vit_small_patch14_dinov2", "weights": "random"}, "set data.image_size 28 or 42"),
    "patches of 16": ({"name": "transformers:vit", "weights": "random", "options": '{"patch_size": 24}'},
                      "set data.image_size 24 or 48"),
    "no attention": ({"name": "test_efficientnet", "weights": "random", "lora_rank": 4},
                     "test_efficientnet has no linear layers of attention"),
    "no such layer": ({"name": "test_vit", "weights": "random", "frozen_layers": ["block.0"]},
                      "model.vision.frozen_layers: test_vit has no block.0; try blocks.0"),
    "too many stages": ({"name": "test_vit", "weights": "random", "frozen_stages": 40}, "has .* stages; set"),
    "weights beside a repository": ({"name": ".", "weights": "x.safetensors"}, "no config.json with timm's"),
    "options": ({"name": "test_vit", "weights": "random", "options": '{"depth": 1000}'}, "must be at most 128"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_encoder_is_refused_in_one_line_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, message = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    with pytest.raises(UserError, match=message) as said:
        ImageEncoder(VisionConfig(**{"grid": 2, "summary_grid": 1, **changes}), 32, 8, 1.0, True)
    assert time.process_time() - start < 5 and "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors; other formats may hold code"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"PK"), "is no safetensors file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: "),
        (lambda folder: (folder / "config.json").write_text("[1]"), "is no JSON object"),
        (lambda folder: (folder / "config.json").write_text("{}"), "no config.json with timm's architecture"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": "../x"}'), "is no name of an arch"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"size": "x"}'), "what is no number"),
        (lambda folder: rewrite(folder, num_hidden_layers=3), "tensors are missing, first"),
        (lambda folder: rewrite(folder, hidden_size=64), r"model\.vision: cannot build vit"),
        (lambda folder: rewrite(folder, num_hidden_layers=10**6), "must be at most 128"),
        (lambda folder: rewrite(folder, hidden_act="evil/kernel"), "is no option of an architecture"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(spoil: Any, message: str, tmp_path: Path) -> None:
    write_transformers("ViT", tmp_path)
    spoil(tmp_path)
    vision = VisionConfig(str(tmp_path), grid=2, summary_grid=1)
    with pytest.raises(UserError, match=message) as said:
        image_pictures(vision, 32)
        ImageEncoder(vision, 32, 8, 1.0, True)
    assert "\n" not in str(said.value)


def rewrite(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
