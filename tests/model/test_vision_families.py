"""Image encoders of 33 families: each trains, caches its features, is saved, loaded and drafts the same."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch

from tests.encoder_jobs import check_family, job
from tests.encoders import TIMM, TRANSFORMERS, write_transformers
from vlm.adapter import read_config
from vlm.compat import meta_device
from vlm.config import Config, VisionConfig
from vlm.errors import UserError
from vlm.model.encoders.build import image_pictures
from vlm.model.vision import ImageEncoder


def gives_intermediates(name: str) -> bool:
    with meta_device():
        return timm.is_model(name) and hasattr(timm.create_model(name), "forward_intermediates")


@pytest.mark.slow
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
            image = encoder(torch.randn(1, 3, pictures.size, pictures.size), torch.ones(1, dtype=torch.bool))
            (image.tokens.sum() + image.f.sum()).backward()
            works.append(name)
        except UserError as error:
            refused[name] = str(error)
    print(f"{len(works)} modules give a grid; refused: {refused}")
    assert len(works) > 75 and len(refused) <= 3
