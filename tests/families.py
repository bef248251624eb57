"""Tiny random base models of many architectures, with the tests' tokenizer."""

from pathlib import Path
from typing import Any

import torch

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
FAMILIES: dict[str, dict[str, Any]] = {
    "bloom": {},
    "biogpt": {},
    "cohere": {},
    "falcon": {},
    "falcon_h1": {},
    "gemma": {"head_dim": 16},
    "gemma3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "gpt2": {},
    "gpt_neox": {},
    "gpt_oss": {**LOCAL_EXPERTS, "head_dim": 16},
    "granite": {},
    "jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "llama": {},
    "mamba": {},
    "minimax": {},
    "mistral": {},
    "mixtral": LOCAL_EXPERTS,
    "mpt": {},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"]},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_5_vl": {},
    "qwen3": {"head_dim": 16},
    "qwen3_5_text": HYBRID,
    "qwen3_moe": {"head_dim": 16, **EXPERTS},
    "qwen3_next": {**HYBRID, **EXPERTS, "shared_expert_intermediate_size": 64},
    "rwkv": {},
    "smollm3": {},
}
"""Model type → what differs from `SIZES`."""
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 32}


def write_base(name: str, folder: Path, tokenizer: str, **changes: Any) -> str:
    """Write a base of a family, with random weights, to a folder that holds none yet; returns the folder."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    sizes = SIZES | FAMILIES[name] | changes
    torch.manual_seed(0)
    if name == "gemma3":
        config = transformers.Gemma3Config(text_config=sizes, vision_config=VISION)
        model = transformers.Gemma3ForConditionalGeneration(config)
    elif name == "qwen2_5_vl":
        config = transformers.Qwen2_5_VLConfig(text_config=sizes, vision_config=QWEN_VISION)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)
