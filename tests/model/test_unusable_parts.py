"""An image encoder or a language model that cannot be used is one clear line; one without stages trains whole."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models import register_model

from tests.rebuilt import rebuild
from vlm.config import Config, VisionConfig
from vlm.errors import UserError


@register_model
def tokens_alone(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """A model of timm that gives tokens and does not tell where in the image they are."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, 16), torch.nn.Flatten(2))


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        (VisionConfig(name="no_such_cnn", weights="random"), "timm has no model no_such_cnn"),
        (VisionConfig(name="tokens_alone", weights="random"), "gives no grid of features"),
        (VisionConfig(name="test_efficientnet", weights="/no/file.safetensors"), "does not exist"),
        (
            VisionConfig(name="vit_small_patch14_dinov2", weights="random"),
            "takes no images of 160 pixels: .* patches of 14; set data.image_size 154 or 168",
        ),
        (VisionConfig(name="efficientformer_l1", weights="random"), "takes no images of 160 pixels .*image_size 224"),
        (VisionConfig(name="poolformer_s12", weights="random", frozen_stages=1), "poolformer_s12 has no stages"),
    ],
)
def test_a_wrong_encoder_is_one_clear_line(vision: VisionConfig, message: str, tiny_config: Config) -> None:
    config = replace(tiny_config, data=replace(tiny_config.data, image_size=160))
    with pytest.raises(UserError, match=message):
        rebuild(config, vision=vision)


@pytest.mark.parametrize("error", [AssertionError(), IndexError("list"), KeyError("x"), NotImplementedError("a\nb")])
@pytest.mark.parametrize("part", ["create_model", "forward"])
def test_whatever_a_cnn_raises_is_one_line(part: str, error, tiny_config: Config, monkeypatch) -> None:
    import timm

    def fail(*_, **__) -> None:
        raise error

    made = timm.create_model("test_efficientnet", num_classes=0, global_pool="")
    monkeypatch.setattr(made, "forward", fail)
    monkeypatch.setattr(timm, "create_model", fail if part == "create_model" else lambda *_, **__: made)
    with pytest.raises(UserError, match=r"^model\.vision.*test_efficientnet") as said:
        rebuild(tiny_config)
    assert "\n" not in str(said.value) and not str(said.value).endswith(": ")


def test_a_cnn_without_stages_trains_whole(tiny_config: Config) -> None:
    vision = VisionConfig(name="poolformer_s12", weights="random", grid=2, summary_grid=1)
    model = rebuild(replace(tiny_config, data=replace(tiny_config.data, image_size=64)), vision=vision)
    assert all(parameter.requires_grad for parameter in model.vision.cnn.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "/no/such/model"}, "does not exist"),
        ({"base": "USER/NO-SUCH"}, "cannot load USER/NO-SUCH"),
        ({"lora_targets": ["qqq"]}, "lora_targets"),
    ],
)
def test_a_wrong_llm_is_one_clear_line(change: dict, message: str, tiny_config: Config) -> None:
    with pytest.raises(UserError, match=message) as error:
        rebuild(tiny_config, llm=replace(tiny_config.model.llm, **change))
    assert "\n" not in str(error.value)
