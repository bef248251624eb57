"""What of an image encoder trains, and how fast; pictures as its own processor makes them, cached features, heat."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.encoder_jobs import CPU, batch_of, built, job
from tests.encoders import snapshot_hub, write_transformers
from vlm.adapter import load, save
from vlm.config import Config, TrainConfig, VisionConfig
from vlm.data.images.image import ImageSpec, resize
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.explanation.attribution import label_heats
from vlm.inference.features import keep_features
from vlm.model.encoders.encoder import by_depth, plain_name
from vlm.model.vision import FEW, ImageEncoder
from vlm.training.optimizer import parameter_groups
from vlm.training.run import _sized, case_dataset


@pytest.mark.slow
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


def test_a_cpu_encodes_many_pictures_a_few_at_a_time(tiny_model) -> None:
    pixels, encoder = torch.randn(2 * FEW + 1, 3, 32, 32), tiny_model.eval().vision
    trained = encoder.grid(pixels)
    assert trained.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(encoder.grid(pixels), trained.detach(), rtol=1e-4, atol=1e-5)
        assert len(encoder.grid(pixels[:0])) == 0
        with torch.autocast("cpu", torch.bfloat16):
            quick = encoder.grid(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.grid(pixels).dtype == torch.float32, "the backward pass would be slower in bf16"
    assert quick.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(quick.float().flatten(), trained.flatten(), dim=0) > 0.999


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
