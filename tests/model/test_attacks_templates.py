"""Attacks by a chat template, and the prompt that an adapter keeps of it."""

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.bases import changed, copied
from tests.conftest import CHAT_TEMPLATE
from vlm import ClinicalVLM
from vlm.adapter import load, save
from vlm.config import PromptConfig
from vlm.data import chat_template
from vlm.data.chat_template import prompt_ids
from vlm.data.prompt import Prompt
from vlm.errors import UserError

__all__ = ["copied"]  # a fixture


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


def test_a_child_that_was_forked_beside_a_taken_lock_is_asked_again(tokenizer, monkeypatch) -> None:
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
def test_an_untrusted_prompt_is_checked(ids, message: str, tiny_adapter: Path, tmp_path: Path) -> None:
    folder = changed(tiny_adapter, tmp_path, prompt_ids=ids)
    with pytest.raises(UserError, match=message) as error:
        ClinicalVLM.from_pretrained(folder, device=torch.device("cpu")).predict()
    assert "\n" not in str(error.value)
