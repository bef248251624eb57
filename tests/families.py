"""Tiny random base models of many architectures, with the tests' tokenizer."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model

SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
HYBRID: dict[str, Any] = {
    "num_hidden_layers": 4, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "head_dim": 16, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
}  # fmt: skip
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
OLD_SIZES: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
MROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}, "head_dim": 16,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "bloom": {},
    "biogpt": {},
    "codegen": OLD_SIZES,
    "cohere": {},
    "cohere2": {},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
    },
    "exaone4": {},
    "falcon": {},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 128},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {**LOCAL_EXPERTS, "head_dim": 16},
    "gptj": OLD_SIZES,
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {**LOCAL_EXPERTS, "logits_scaling": 4.0},
    "granitemoehybrid": {
        **MAMBA,
        **LOCAL_EXPERTS,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 64,
    },
    "helium": {"head_dim": 16},
    "internvl": {"model_type": "qwen2"},
    "jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "llama": {},
    "llava": {"model_type": "llama"},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "minimax": {},
    "mistral": {},
    "mistral3": {"head_dim": 16},
    "mixtral": LOCAL_EXPERTS,
    "mpt": {},
    "nemotron": {},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
    },
    "olmo2": {},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "paligemma": {"head_dim": 16},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_5_vl": MROPE,
    "qwen3": {"head_dim": 16},
    "qwen3_5": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_moe": {"head_dim": 16, **EXPERTS},
    "qwen3_next": {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_vl": MROPE,
    "rwkv": {},
    "smollm3": {},
    "smolvlm": {"model_type": "llama"},
    "stablelm": {},
    "starcoder2": {},
}
"""Model type → what differs from `SIZES`."""
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_VISION: dict[str, Any] = {
    "depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 32,
}  # fmt: skip
IMAGE_TEXT: dict[str, dict[str, Any]] = {
    "gemma3": VISION,
    "internvl": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
    "llava": {**VISION, "model_type": "clip_vision_model"},
    "mistral3": {**VISION, "model_type": "pixtral"},
    "paligemma": VISION,
    "qwen2_5_vl": QWEN_VISION,
    "qwen3_5": QWEN_VISION,
    "qwen3_vl": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
    "smolvlm": VISION,
}
"""Families of image-text models → the config of their image encoder, which is left out."""


def is_known(name: str) -> bool:
    """Check whether the installed Transformers has the family: Nemotron-H and Qwen3.5 came after 5.0."""
    from transformers import CONFIG_MAPPING

    return name in CONFIG_MAPPING


def write_base(name: str, folder: Path, tokenizer: str, **changes: Any) -> str:
    """Write a base of a family, with random weights, to a folder that holds none yet; returns the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    sizes = SIZES | FAMILIES[name] | changes
    torch.manual_seed(0)
    if name in IMAGE_TEXT:
        config = AutoConfig.for_model(name, text_config=sizes, vision_config=IMAGE_TEXT[name])
        model = AutoModelForImageTextToText.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():  # norms of 1 and biases of 0 would hide what is left out
            if parameter.ndim == 1:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_llm: str):
    """Folder of a family's base, written once."""
    root = tmp_path_factory.mktemp("bases")

    def write(name: str) -> str:
        folder = root / name
        return str(folder) if folder.exists() else write_base(name, folder, tiny_llm)

    return write


def model_on(base: str, config: Config, **llm: Any) -> ClinicalVLM:
    """Build the model of a config on another base, with other options of it."""
    config = replace(config, model=replace(config.model, llm=replace(config.model.llm, base=base, **llm)))
    return build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
