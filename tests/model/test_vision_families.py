"""Image encoders of 33 families: each trains, caches its features, is saved, loaded and drafts the same, or refuses."""

import json
import re
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import public
from tests.encoders import TIMM, TRANSFORMERS, snapshot_hub, write_timm, write_transformers
from vlm.adapter import load, read_config, save
from vlm.compat import meta_device
from vlm.config import Config, DropoutConfig, TrainConfig, VisionConfig
from vlm.data.collate import Collator
from vlm.data.images.image import ImageSpec, resize, to_pixel_values
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.explanation.attribution import label_heats
from vlm.inference.engine import ReportEngine
from vlm.model.encoders.build import image_pictures
from vlm.model.encoders.encoder import by_depth, plain_name
from vlm.model.vision import ImageEncoder
from vlm.training.features import keep_features
from vlm.training.optimizer import parameter_groups
from vlm.training.run import _sized, build_model, case_dataset

CPU = torch.device("cpu")


def job(config: Config, size: int, **vision: Any) -> Config:
    """`tiny_config` with another encoder, nothing dropped out."""
    data = replace(config.data, image_size=size, dropout=DropoutConfig(0, 0, 0))
    given = VisionConfig(**{"weights": "pretrained", "grid": 2, "summary_grid": 1, **vision})
    return replace(config, data=data, model=replace(config.model, vision=given))


def built(config: Config) -> Any:
    return public(build_model(config, load_cohort(config.data), CPU, torch.float32))


def batch_of(config: Config, model: Any, count: int = 4) -> Any:
    dataset = case_dataset(config, model.spec, load_cohort(config.data), "train")
    return Collator(model.prompt)([dataset[index] for index in range(count)])


def check_family(config: Config, folder: Path) -> None:
    """Train a step, compare cached features with pixels, save, load and draft."""
    model = built(config)
    batch = batch_of(config, model)
    model.train()
    model(**batch).loss.backward()
    ours = dict(model.vision.cnn.named_parameters())
    trained = {name for name, value in ours.items() if value.requires_grad}
    assert trained and all(ours[name].grad is not None and ours[name].grad.isfinite().all() for name in trained)
    assert sum(bool(ours[name].grad.any()) for name in trained) > len(trained) / 4  # some start behind a gain of 0
    assert all(ours[name].grad is None for name in ours.keys() - trained)
    model.eval()
    with torch.no_grad():
        pixels, there = batch["pixel_values"], batch["has_image"]
        kept = model.vision.features(pixels)
        for seen, known in zip(model.vision(pixels, there), model.vision(kept, there), strict=True):
            torch.testing.assert_close(seen, known)
        alone = torch.cat([model.vision.features(image[None]) for image in pixels])
        torch.testing.assert_close(alone, kept, rtol=1e-3, atol=1e-4)
    again = load(save(model, folder / "adapter"), device=CPU, dtype=torch.float32)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)
    picture = str(next((Path(config.data.root) / "images").glob("*.png")))
    cases = [(picture, {"glucose": 7.0}), (None, {})]
    first, second = (ReportEngine(one).predict(cases, max_new_tokens=4) for one in (model, again))
    assert [(r.text, r.probabilities) for r in first] == [(r.text, r.probabilities) for r in second]


def gives_intermediates(name: str) -> bool:
    with meta_device():
        return timm.is_model(name) and hasattr(timm.create_model(name), "forward_intermediates")


@pytest.mark.parametrize("family", TIMM)
def test_a_family_of_timm_works_whole(family: str, tiny_config: Config, tmp_path: Path) -> None:
    name, size, options = TIMM[family]
    if not gives_intermediates(name):
        pytest.skip(f"this version of timm has no {name}, or not its intermediates")
    vision = {"name": name, "weights": "random", "options": json.dumps(options) if options else ""}
    check_family(job(tiny_config, size, **vision), tmp_path)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_family_of_transformers_works_whole(family: str, tiny_config: Config, tmp_path: Path) -> None:
    write_transformers(family, tmp_path / "encoder")
    check_family(job(tiny_config, 32, name=str(tmp_path / "encoder")), tmp_path)
    config = read_config(tmp_path / "adapter")
    assert config.model.vision.name.startswith("transformers:") and config.model.vision.weights == "random"
    assert str(tmp_path) not in (tmp_path / "adapter" / "config.json").read_text()
    assert (config.spec.image.mean, config.spec.image.std, config.spec.image.interpolation) == (0.5, 0.2, "bicubic")


# ------------------------------------------------------------------------------- what a grid is made of


def test_a_vit_gives_its_last_block_with_the_last_norm() -> None:
    for name, norm in (("test_vit", "norm"), ("beit_base_patch16_224", "fc_norm")):
        encoder = ImageEncoder(VisionConfig(name, weights="random", grid=2, summary_grid=1,
                                            options='{"depth": 2}' if norm == "fc_norm" else ""), 160 if norm == "norm"
                               else 32, 8, 1.0, True).eval()  # fmt: skip
        with torch.no_grad():
            getattr(encoder.cnn, norm).weight.mul_(3.0)
            pixels = torch.randn(2, 3, *[encoder.cnn.patch_embed.img_size[0]] * 2)
            tokens = encoder.cnn.forward_features(pixels)
            tokens = encoder.cnn.fc_norm(tokens) if norm == "fc_norm" else tokens
            grid = encoder.grid(pixels)
        torch.testing.assert_close(grid.flatten(2).transpose(1, 2), tokens[:, encoder.cnn.num_prefix_tokens :])


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "test_convnext", "test_nfnet"])
def test_a_cnn_gives_bit_for_bit_what_its_own_forward_gives(name: str) -> None:
    torch.manual_seed(3)
    encoder = ImageEncoder(VisionConfig(name, weights="random", grid=2, summary_grid=1), 64, 8, 1.0, True).eval()
    after = torch.rand(1)
    torch.manual_seed(3)
    cnn = timm.create_model(name, num_classes=0, global_pool="").to(memory_format=torch.channels_last).eval()
    pixels = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, cnn.state_dict()[key]) for key, value in encoder.cnn.state_dict().items())
    assert torch.equal(encoder.grid(pixels), cnn(pixels)) and after.shape == (1,)


def test_the_vision_half_of_a_two_tower_model_is_the_half_itself(tmp_path: Path) -> None:
    model = write_transformers("MedSigLIP (SigLIP)", tmp_path)
    encoder = ImageEncoder(VisionConfig(str(tmp_path), grid=2, summary_grid=1), 32, 8, 1.0, True).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        states = model.vision_model(pixels).last_hidden_state  # type: ignore[operator]
        torch.testing.assert_close(encoder.grid(pixels).flatten(2).transpose(1, 2), states)
    assert not any(name.startswith(("text", "head")) for name in encoder.cnn.state_dict())


@pytest.mark.parametrize(("size", "side"), [(48, 6), (64, 8)])
def test_positions_are_interpolated_for_larger_images(size: int, side: int, tmp_path: Path) -> None:
    write_transformers("ViT", tmp_path)
    pixels = torch.zeros(1, 3, size, size)
    for config in (VisionConfig(str(tmp_path), grid=7, summary_grid=1),
                   VisionConfig("test_vit", weights="random", grid=7, summary_grid=1)):  # fmt: skip
        encoder = ImageEncoder(config, size, 8, 1.0, True)
        assert encoder.grid(pixels).shape[2:] == ((side, side) if encoder.channels == 32 else (size // 16,) * 2)
        assert encoder.features(pixels).shape == (1, 50, encoder.channels)


# ------------------------------------------------------------------------------------ names and weights


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


# ------------------------------------------------------------------------------- what trains, and how fast


@pytest.mark.parametrize("name", ["test_vit", "folder"])
def test_lora_trains_in_place_of_the_encoder(name: str, tiny_config: Config, tmp_path: Path) -> None:
    if name == "folder":
        write_transformers("RAD-DINO (DINOv2)", tmp_path / "encoder")
    vision = {"name": str(tmp_path / "encoder")} if name == "folder" else {"name": name, "weights": "random"}
    config = job(tiny_config, 32, lora_rank=3, **vision)
    model = built(config)
    trained = {name for name, value in model.vision.cnn.named_parameters() if value.requires_grad}
    said = model.vision.lora_line.removeprefix("LoRA of the image encoder: ")
    assert [int(part.split()[1]) for part in said.split(", ")] == ([2] * 4 if name == "folder" else [6] * 2)
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    before = {name: value.clone() for name, value in model.vision.cnn.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(model, TrainConfig()), lr=1e-2)
    for _ in range(2):
        model.train()
        model(**batch_of(config, model)).loss.backward()
        optimizer.step()
    changed = {name for name, value in model.vision.cnn.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained
    adapter = save(model, tmp_path / "adapter")
    again = load(adapter, device=CPU, dtype=torch.float32)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    assert all("lora_" in key for key in load_file(adapter / "adapter_model.safetensors"))
    assert not any("vision" in key for key in load_file(adapter / "adapter_model.safetensors"))


def test_a_layer_that_lora_would_not_change_is_left_out_and_named() -> None:
    vision = VisionConfig("eva02_tiny_patch14_224", weights="random", grid=2, summary_grid=1, lora_rank=2,
                          options='{"embed_dim": 32, "depth": 2, "num_heads": 2}')  # fmt: skip
    encoder = ImageEncoder(vision, 42, 8, 1.0, True)
    assert encoder.lora_line.startswith("LoRA of the image encoder: proj 2; none on q")
    encoder.grid(torch.randn(1, 3, 42, 42)).sum().backward()
    assert all(v.grad is not None for v in encoder.cnn.parameters() if v.requires_grad)


def test_lora_on_a_named_encoder_is_all_that_its_adapter_holds_of_it(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_transformers("RAD-DINO (DINOv2)", tmp_path / "hub" / "org--rad" / "snapshots" / ("c" * 40))
    monkeypatch.setattr("vlm.model.encoders.locate.cached_file", snapshot_hub(tmp_path / "hub"))
    monkeypatch.setattr("vlm.model.encoders.build.SMALL", 10)
    model = built(job(tiny_config, 32, name="hf-hub:org/rad", lora_rank=2))
    adapter = save(model, tmp_path / "adapter")
    held = [name for name in load_file(adapter / "vlm.safetensors") if name.startswith("vision.cnn.")]
    assert held and all("lora_" in name for name in held)
    again = load(adapter, device=CPU, dtype=torch.float32)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_the_rate_decays_by_layer(tiny_config: Config) -> None:
    config = job(tiny_config, 32, name="test_vit", weights="random")
    model = built(config)
    rates = parameter_groups(model, TrainConfig(vision_learning_rate=1.0, vision_layer_decay=0.5))
    known = {id(value): name for name, value in model.named_parameters()}
    found = {known[id(value)]: group["lr"] for group in rates for value in group["params"]}
    layers = model.vision.encoder.layers(model.vision.cnn)
    last = len(layers) - 1
    assert last >= 6 and found["vision.cnn.norm.weight"] == 1.0
    assert found["vision.cnn.patch_embed.proj.weight"] == 0.5**last
    assert found["vision.cnn.blocks.0.attn.qkv.weight"] == 0.5 ** (last - 1)
    plain = parameter_groups(model, TrainConfig())
    assert len(plain) < len(rates) and {len(g["params"]) for g in plain} != {len(g["params"]) for g in rates}


def test_stages_and_layers_of_any_family_stay_frozen_by_number_and_by_name(tmp_path: Path) -> None:
    write_transformers("RAD-DINO (DINOv2)", tmp_path)
    for name, stem, block in (("test_vit", "patch_embed", "blocks.0"), (str(tmp_path), "embeddings", "layer.0")):
        weights = "random" if name == "test_vit" else "pretrained"
        for changes in ({"frozen_stages": 2}, {"frozen_layers": [stem, block if name == "test_vit" else "encoder"]}):
            vision = VisionConfig(name, weights=weights, grid=2, summary_grid=1, **changes)
            trains = {p: v.requires_grad for p, v in ImageEncoder(vision, 32, 8, 1.0, True).cnn.named_parameters()}
            assert not any(on for p, on in trains.items() if p.startswith(stem) or f".{block}." in f".{p}")
            assert any(trains.values())


def test_parameters_are_ordered_by_depth_whatever_their_names() -> None:
    names = ["embeddings.a", "encoder.layer.0.b", "encoder.layer.0.c", "encoder.layer.1.b", "layernorm.d"]
    assert by_depth(iter(names)) == [["embeddings.a"], names[1:3], ["encoder.layer.1.b", "layernorm.d"]]
    assert plain_name("blocks.0.attn.qkv.base_layer.bias") == "blocks.0.attn.qkv.bias"
    assert plain_name("blocks.0.attn.qkv.lora_A.default.weight") == "blocks.0.attn.qkv.weight"


# --------------------------------------------------------------------------- pictures, cache, explanation


def test_pictures_are_resized_as_the_encoders_own_processor_does() -> None:
    from torchvision.transforms.v2 import functional

    picture = (255 * np.random.default_rng(0).random((97, 131))).astype(np.float32)
    for name in ("bilinear", "bicubic"):
        mode = functional.InterpolationMode(name)
        wanted = functional.resize(torch.from_numpy(picture)[None], [32, 40], mode, antialias=True)[0].clamp(0, 255)
        assert np.abs(resize(picture, 32, 40, name).astype(float) - wanted.numpy()).max() <= 1
    shrunk = cv2.resize(picture, (40, 32), interpolation=cv2.INTER_AREA)
    assert np.array_equal(resize(picture, 32, 40), np.round(shrunk).astype(np.uint8))


def test_defaults_of_pictures_are_not_written_and_a_stranger_s_are_bounded() -> None:
    from vlm.config.strict import from_dict, to_dict

    assert to_dict(ImageSpec(size=32)) == {"size": 32}
    spec = ImageSpec(32, 0.4, 0.2, interpolation="bicubic", channels=1)
    assert from_dict(ImageSpec, to_dict(spec), "x") == spec
    for values, message in (({"interpolation": "nearest"}, "must be area or bilinear or bicubic"),
                            ({"channels": 7}, "image.channels: must be 1 or 3")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            from_dict(ImageSpec, values, "x")


def test_a_frozen_transformer_s_features_are_kept_and_it_stays_in_eval_mode(tiny_config: Config) -> None:
    config = job(tiny_config, 32, name="test_vit", weights="random", train=False)
    model = built(config)
    dataset = case_dataset(config, model.spec, load_cohort(config.data), "train")
    pixels = torch.cat([dataset.plain()[index]["pixel_values"] for index in range(3)])
    keep_features(model.train(), config, [dataset])
    assert not any(module.training for module in model.vision.cnn.modules())
    torch.testing.assert_close(torch.from_numpy(np.array(dataset.features.values[:3])), model.vision.features(pixels))


def test_heat_is_mapped_on_a_transformers_own_grid(tiny_config: Config, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    write_transformers("ViT", tmp_path)
    config = job(tiny_config, 32, name=str(tmp_path))
    model = built(config).eval()
    dataset = case_dataset(config, model.spec, load_cohort(config.data), "train")
    example = next(case for case in (dataset[index] for index in range(8)) if case["has_image"])
    heats = label_heats(model, example)
    assert len(heats) == 2 and all(heat.shape == (1, 4, 4) and heat.any() for heat in heats)


def test_a_size_of_zero_is_that_of_the_encoder_s_weights(tiny_config: Config, tmp_path: Path) -> None:
    write_transformers("ViT", tmp_path)
    config = job(tiny_config, 0, name=str(tmp_path), train=False)
    assert _sized(config).data.image_size == built(_sized(config)).spec.image.size == 32
    assert _sized(job(tiny_config, 48)).data.image_size == 48


@pytest.mark.soak
def test_every_module_of_timm_gives_a_grid_or_one_line() -> None:
    """One architecture of each module of timm, random weights, up to 100 million parameters."""
    modules: dict[str, list[str]] = {}
    for name in timm.list_models():
        modules.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    small = re.compile(r"^test_|atto|femto|pico|nano|xxs|xxt|tiny|_t0|_b0|_m0|_s0|_050|small|_xs")
    works, refused = [], {}
    for names in modules.values():
        name = next((name for name in names if small.search(name)), names[0])
        with meta_device(), suppress(RuntimeError):
            if sum(value.numel() for value in timm.create_model(name).parameters()) > 100e6:
                continue
        vision = VisionConfig(name, weights="random", grid=2, summary_grid=1)
        try:
            pictures, _ = image_pictures(vision, 0)
            encoder = ImageEncoder(vision, pictures.size, 8, 1.0, True).train()
            tokens, f = encoder(torch.randn(1, 3, pictures.size, pictures.size), torch.ones(1, dtype=torch.bool))
            (tokens.sum() + f.sum()).backward()
            works.append(name)
        except UserError as error:
            refused[name] = str(error)
    print(f"{len(works)} modules give a grid; refused: {refused}")
    assert len(works) > 75 and len(refused) <= 3
