"""Tiny image encoders of many families, with random weights: timm's by their options, Transformers' as folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ResNet": ("test_resnet", 64, {}),
    "EfficientNet": ("test_efficientnet", 64, {}),
    "ConvNeXt": ("test_convnext", 64, {}),
    "NFNet": ("test_nfnet", 64, {}),
    "RepVGG and kin": ("test_byobnet", 64, {}),
    "MobileNetV4": ("mobilenetv4_conv_small", 64, {}),
    "MobileNetV3": ("tf_mobilenetv3_small_minimal_100", 64, {}),
    "EfficientViT": ("efficientvit_b0", 64, {}),
    "hybrid CNN and attention": ("test_maxvit", 64, {}),
    "MambaOut": ("test_mambaout", 64, {}),
    "ViT": ("test_vit", 32, {}),
    "ViT with registers": ("test_vit3", 32, {}),
    "DINOv2": ("vit_small_patch14_dinov2", 42, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "SigLIP": ("vit_base_patch16_siglip_gap_224", 32, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "CLIP": ("vit_base_patch32_clip_224", 64, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "BEiT": ("beit_base_patch16_224", 32, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "EVA-02": ("eva02_tiny_patch14_224", 42, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "DINOv3": ("vit_small_patch16_dinov3", 32, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "Swin": ("swin_tiny_patch4_window7_224", 64, {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}),
    "ViT with relative positions": ("test_vit_relpos", 32, {}),
}
"""Family → timm's name, pixels a side, options that make it tiny."""
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
STAGES: dict[str, Any] = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4],
                          "window_size": 4}  # fmt: skip
PYRAMID: dict[str, Any] = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
                           "num_attention_heads": [1, 1, 2, 2]}  # fmt: skip
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "RAD-DINO (DINOv2)": ("Dinov2", SIZES),
    "DINOv2 with registers": ("Dinov2WithRegisters", {**SIZES, "num_register_tokens": 2}),
    "DINOv3": ("DINOv3ViT", {**SIZES, "num_register_tokens": 2}),
    "ViT": ("ViT", SIZES),
    "BEiT": ("Beit", SIZES),
    "MedSigLIP (SigLIP)": ("Siglip", {"vision_config": SIZES, "text_config": TEXT}),
    "CLIP": ("CLIP", {"vision_config": SIZES, "text_config": TEXT}),
    "Swin": ("Swin", STAGES),
    "Swin V2": ("Swinv2", STAGES),
    "ConvNeXt V2": ("ConvNextV2", {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}),
    "ResNet": ("ResNet", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}),
    "SegFormer": ("Segformer", PYRAMID),
    "I-JEPA": ("IJepa", SIZES),
}
"""Family → name of the class in Transformers, options that make it tiny."""
PROCESSOR = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3], "resample": 3,
             "size": {"height": 32, "width": 32}}  # fmt: skip


def write_transformers(name: str, folder: Path) -> torch.nn.Module:
    """Write a tiny model of a family to a folder, as Transformers saves it; returns the model."""
    import transformers

    kind, options = TRANSFORMERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options)).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return model  # type: ignore[no-any-return]


def write_timm(name: str, folder: Path, **options: Any) -> torch.nn.Module:
    """Write a model of timm to a folder, as timm saves it; returns the model."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7, **options).eval()
    save_for_hf(model, folder, model_args=options or None, safe_serialization=True)
    return model


def snapshot_hub(root: Path) -> Callable[..., str | None]:
    """Stand in for `cached_file`: repositories are folders below `root`, in a snapshot of one commit."""

    def fetch(repository: str, file: str, revision: str | None = None, **_: Any) -> str | None:
        found = root / repository.replace("/", "--") / "snapshots" / ("c" * 40) / file
        return str(found) if found.is_file() else None

    return fetch
