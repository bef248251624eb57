"""A language model of a known shape with random weights, made layer by layer on the device: no file, no network."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "tie_word_embeddings": True},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
             "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128_256},
}  # fmt: skip
"""Name → sizes: those of SmolLM2-135M, Llama-3.2-1B and Llama-3.1-8B."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of one token a byte, so that a report of n letters has n tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], pad_token=special[2],
        unk_token=special[0],
    )  # fmt: skip


def random_base(shape: str, device: torch.device, dtype: torch.dtype, quantization: str) -> PreTrainedModel:
    """Build a Llama of a shape with random weights on the device, its linear layers in NF4 if asked.

    Each layer is filled and quantised before the next, so 8 billion weights never lie on the device in 16 bits.
    """
    config = LlamaConfig(
        **{"vocab_size": 400, **SHAPES[shape]}, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
        pad_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(0)
    head = llm.get_output_embeddings()
    for path, module in list(llm.named_modules()):
        if quantization == "nf4" and type(module) is nn.Linear and module is not head:
            llm.set_submodule(path, _nf4_layer(module, device, dtype))
    for module in llm.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.is_meta:
                filled = torch.empty(value.shape, dtype=dtype, device=device)
                filled = filled.fill_(1) if value.ndim == 1 else filled.normal_(std=0.02)
                setattr(module, name, nn.Parameter(filled, requires_grad=False))
    llm.tie_weights()
    rotary = llm.model.rotary_emb
    llm.model.rotary_emb = type(rotary)(config).to(device)  # its frequencies are a buffer, empty on meta
    return llm.requires_grad_(False).eval()


def _nf4_layer(layer: nn.Linear, device: torch.device, dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    packed = Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", quant_storage=dtype,
        device="meta",
    )  # fmt: skip
    values = torch.empty(layer.weight.shape, dtype=dtype, device=device).normal_(std=0.02)
    packed.weight = Params4bit(values, requires_grad=False, quant_type="nf4", quant_storage=dtype, module=packed)
    if device.type == "cpu":  # its weights are already there, so nothing moves and nothing would be quantised
        packed.weight = packed.weight._quantize(device)
        packed.support_avx512bf16_for_cpu = False
    return packed.to(device)
