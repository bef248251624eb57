"""Attacks by the files of a base model: other layers, settings or tokens, and broken ones."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.bases import change_weights, changed, copied
from vlm.adapter import load, read_config
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.model.bases.base_files import base_digest, settings_digest
from vlm.training.run import build_model

__all__ = ["copied"]  # a fixture


@pytest.mark.parametrize("part", ["self_attn", "mlp", "layers.1.mlp.down_proj"])
def test_a_base_whose_layers_were_replaced_is_refused(part: str, tiny_adapter: Path, copied: Path) -> None:
    load(tiny_adapter, base=str(copied), device=torch.device("cpu"))
    change_weights(copied, part)
    with pytest.raises(UserError, match=r"trained on another base model than .*SHA-256 of its weights"):
        load(tiny_adapter, base=str(copied), device=torch.device("cpu"))


def test_training_does_not_go_on_from_an_adapter_of_replaced_layers(tiny_config: Config, tiny_adapter, copied) -> None:
    from vlm.adapter import starting_weights

    change_weights(copied, "mlp")
    llm = replace(tiny_config.model.llm, base=str(copied))
    config = replace(tiny_config, model=replace(tiny_config.model, llm=llm))
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match=r"train\.start_from: .*another base model"):
        starting_weights(model, tiny_adapter)


def change_json(file: Path, change) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def swap_tokens(values: dict) -> None:
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


SETTINGS = {
    "rope": ("config.json", lambda v: v["rope_parameters"].update(rope_theta=5000.0)),
    "norm": ("config.json", lambda v: v.update(rms_norm_eps=0.5)),
    "activation": ("config.json", lambda v: v.update(hidden_act="gelu")),
    "vocabulary": ("tokenizer.json", swap_tokens),
    "merges": ("tokenizer.json", lambda v: v["model"]["merges"].reverse()),
    "splitting": ("tokenizer.json", lambda v: v["pre_tokenizer"].update(add_prefix_space=True)),
    "end": ("tokenizer_config.json", lambda v: v.update(eos_token="<|im_start|>")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_base_of_another_config_or_tokenizer_is_refused(name: str, tiny_adapter: Path, copied: Path) -> None:
    file, change = SETTINGS[name]
    load(tiny_adapter, base=str(copied), device=torch.device("cpu"))
    change_json(copied / file, change)
    with pytest.raises(UserError, match=r"trained on another base model than .*SHA-256 of its config and tokenizer"):
        load(tiny_adapter, base=str(copied), device=torch.device("cpu"))


def test_who_wrote_a_base_changes_nothing(tiny_adapter: Path, tiny_llm: str, copied: Path) -> None:
    change_json(
        copied / "config.json", lambda v: v.update(transformers_version="9.9", _name_or_path="x", use_cache=False)
    )
    change_json(copied / "tokenizer.json", lambda v: v.update(truncation=None, padding=None))
    (copied / "README.md").write_text("of another place")
    wanted = settings_digest(tiny_llm, None)
    assert settings_digest(str(copied), None) == wanted == read_config(tiny_adapter).base_settings_sha256
    load(tiny_adapter, base=str(copied), device=torch.device("cpu"))
    AutoModelForCausalLM.from_pretrained(tiny_llm).save_pretrained(copied)
    AutoTokenizer.from_pretrained(tiny_llm).save_pretrained(copied)
    assert settings_digest(str(copied), None) == wanted


def test_a_tokenizer_without_tokenizer_json_counts_too(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer.model").write_bytes(b"first")
    before = settings_digest(str(copied), None)
    (copied / "tokenizer.model").write_bytes(b"other")
    assert settings_digest(str(copied), None) != before


def test_an_adapter_without_the_digest_of_the_settings_is_told_once(
    tiny_adapter: Path, copied: Path, tmp_path: Path, capsys
) -> None:
    folder = changed(tiny_adapter, tmp_path, base_settings_sha256=None)
    change_json(copied / "config.json", lambda v: v.update(rms_norm_eps=1e-4))
    for _ in range(2):
        load(folder, base=str(copied), device=torch.device("cpu"))
    assert capsys.readouterr().err.count("without the SHA-256 of its base's config and tokenizer; they are not") == 1


def test_the_digest_is_of_the_tensors_however_they_lie(tiny_llm: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llm)
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert base_digest(str(tmp_path / "shards"), None) == base_digest(tiny_llm, None)
    model.model.layers[0].mlp.up_proj.weight.data[3, 5] += 1e-6
    model.save_pretrained(tmp_path / "other")
    assert base_digest(str(tmp_path / "other"), None) != base_digest(tiny_llm, None)
    tensors = load_file(tmp_path / "other" / "model.safetensors")
    first, second = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
    before = base_digest(str(tmp_path / "other"), None)
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    assert base_digest(str(tmp_path / "other"), None) != before


def test_an_adapter_of_an_earlier_version_is_told_that_a_sample_is_compared(
    tiny_adapter: Path, copied: Path, tmp_path: Path, capsys
) -> None:
    folder = changed(tiny_adapter, tmp_path, base_sha256=None, prompt_ids=None)
    model = load(folder, base=str(copied), device=torch.device("cpu"))
    assert "without the SHA-256 of its base; a sample of the base's weights is compared" in capsys.readouterr().err
    assert model.prompt.ids() == load(tiny_adapter, device=torch.device("cpu")).prompt.ids()
    change_weights(copied, "embed_tokens")
    with pytest.raises(UserError, match=r"trained on another base model .*fingerprint"):
        load(folder, base=str(copied), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("base_settings_sha256", "0" * 65), ("base_settings_sha256", 7),
     ("base_sha256", "0" * 63), ("base_sha256", 5), ("base_sha256", "G" * 64), ("base_fingerprint", "../../../x"),
     ("base_fingerprint", 1234567890123456), ("base_fingerprint", "")],
)  # fmt: skip
def test_an_untrusted_digest_is_checked(key: str, value, tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{key}: (is \d+ digits from 0 to f|\d+ is no text)"):
        load(changed(tiny_adapter, tmp_path, **{key: value}))


def cut(base: Path) -> None:
    os.truncate(base / "model.safetensors", (base / "model.safetensors").stat().st_size - 100)


def cut_header(base: Path) -> None:
    os.truncate(base / "model.safetensors", 50)


def pointer(base: Path) -> None:
    (base / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def empty(base: Path) -> None:
    (base / "model.safetensors").write_bytes(b"")


def more(base: Path) -> None:
    with (base / "model.safetensors").open("ab") as file:
        file.write(b"more")


def gone(base: Path) -> None:
    (base / "model.safetensors").unlink()


def a_missing_shard(base: Path) -> None:
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    names = load_file(base / "model-00001-of-00002.safetensors")
    index = {name: "model-00001-of-00002.safetensors" for name in names} | {"x": "model-00002-of-00002.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def an_adapter(base: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "target_modules": ["q_proj"]}
    (base / "adapter_config.json").write_text(json.dumps(config))


def other_weights(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "model.safetensors").rename(base / "other.safetensors")
    (base / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))


@pytest.mark.parametrize(
    "spoil", [cut, cut_header, pointer, empty, more, gone, a_missing_shard, an_adapter, other_weights]
)
def test_a_base_with_broken_files_is_one_line(spoil, tiny_config: Config, copied: Path) -> None:
    spoil(copied)
    llm = replace(tiny_config.model.llm, base=str(copied))
    config = replace(tiny_config, model=replace(tiny_config.model, llm=llm))
    with pytest.raises(UserError, match=r"model\.llm\.base: cannot load .*base: ") as error:
        build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    assert "\n" not in str(error.value)
