"""Render a base's chat template once, around the places of the evidence and of the words.

A template is a program of whoever shared the base: it may loop for ever, ask for the date or draw at random. So it
runs in a process of its own, with limits of time and memory, a fixed clock and a fixed seed.
"""

import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm.errors import UserError
from vlm.plain import shortened

if TYPE_CHECKING:  # given; its library takes seconds to import
    from multiprocessing.connection import Connection

    from transformers import PreTrainedTokenizerBase

EVIDENCE, WORDS = "\ue000", "\ue001"
"""Private-use characters that mark the two gaps while a template is rendered; no user text passes it."""
GAP = EVIDENCE + WORDS
CLOCK = datetime(2024, 7, 26)
"""What a template reads as now, in every run: training and use, and each process of them, must show the same words."""
CPU_SECONDS = 5
WAIT_SECONDS = {"fork": 20, "spawn": 60}
"""For an answer, on a machine that does much else."""
MEMORY = 256 << 20
"""Bytes that rendering may take."""
LONGEST = 1 << 18
"""Characters of a template, and of what it gives."""


class PromptIds(NamedTuple):
    """Token ids of the template before, between and after the gaps of evidence and words."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", system: str, as_before: bool = False) -> PromptIds:
    """Token ids of the chat template with its gaps, or of the plain words where the base has no template.

    A tokenizer that begins every text with a beginning-of-text token has exactly one here. With `as_before` the ids
    are those that versions made which did not keep them. Raises `UserError` for a template that does not show one
    user message, and for one that fails or exceeds its limits.
    """
    text = f"{system}\n{GAP}\n"
    if tokenizer.chat_template:
        text = _choose(_render(_template_of(tokenizer), system, _special_tokens(tokenizer)), system, as_before)
    before, rest = text.split(EVIDENCE)
    pieces = (before, *rest.split(WORDS))
    before_ids, between, after = (tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces)
    return PromptIds(tuple(before_ids if as_before else _with_bos(tokenizer, before_ids)), tuple(between), tuple(after))


def _with_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    rest = ids
    while rest[:1] == [bos]:
        rest = rest[1:]
    wanted = tokenizer("a").input_ids[:1] == [bos]
    return [bos, *rest] if wanted or len(rest) < len(ids) else ids


def _template_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # named variants, none of them the default
        raise UserError(
            f"model.llm.base: its tokenizer has {len(tokenizer.chat_template or ())} chat templates and none of them "
            "is named default; keep one in your own copy of the base"
        ) from None
    if not isinstance(template, str) or len(template) > LONGEST:
        raise UserError(f"model.llm.base: its chat template is no text of at most {LONGEST:,} characters")
    return template


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[str, str], ...]:
    return tuple((name, str(token)) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str))


class Rendering(NamedTuple):
    """What a template gave for one way of putting the messages."""

    text: str
    error: str = ""
    refused: bool = False
    """Whether the template itself raised the error, as those do that know no system role."""


def _choose(rendered: Sequence[Rendering], system: str, as_before: bool) -> str:
    """The first rendering that holds the gaps once and in order, one with the system's words if there is one.

    A template that knows or shows no system's turn gets its words in the user's.
    """
    if as_before:
        rendered = [rendered[2 if rendered[0].refused else 0]]
    texts = [r.text for r in rendered if r.text.count(EVIDENCE) == r.text.count(WORDS) == 1]
    texts = [text for text in texts if text.index(EVIDENCE) < text.index(WORDS)]
    if texts:
        return next((text for text in texts if system.strip() in text), texts[0])
    error = next((f" ({r.error})" for r in rendered if r.error), "")
    raise UserError(
        f"model.llm.base: its chat template does not show a user's message once and as it was given{error}; "
        "mend or remove the template in your own copy of the base"
    )


def _conversations(system: str) -> list[list[dict[str, Any]]]:
    """The ways in which templates want the messages: in two turns or in one, as text or as a list of parts."""
    two, one = [("system", system), ("user", GAP)], [("user", f"{system}\n{GAP}")]
    kinds: list[Callable[[str], Any]] = [lambda text: text, lambda text: [{"type": "text", "text": text}]]
    return [[{"role": role, "content": kind(text)} for role, text in turns] for turns in (two, one) for kind in kinds]


@lru_cache(maxsize=64)
def _render(template: str, system: str, special: tuple[tuple[str, str], ...]) -> tuple[Rendering, ...]:
    """Render every conversation in a child process; raises `UserError` where it exceeds its limits."""
    # A fork costs no start. But where another thread holds a lock at that moment, it may wait for ever.
    for method in ("fork", "spawn") if sys.platform == "linux" else ("spawn",):
        answer = _ask_child(method, template, system, dict(special))
        if answer is not None:
            break
    if not answer:
        raise UserError(
            f"model.llm.base: its chat template takes more than {CPU_SECONDS} seconds or {MEMORY >> 20} MiB to render; "
            "such a template is not run"
        )
    return tuple(Rendering(*values) for values in json.loads(answer))


def _ask_child(method: str, *job: Any) -> bytes | None:
    """Run `_render_and_send` in a child; returns what it sent, nothing where a limit ended it, None if it is silent."""
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_render_and_send, args=(sender, *job), daemon=True)
    child.start()
    sender.close()
    try:
        return receiver.recv_bytes() if receiver.poll(WAIT_SECONDS[method]) else None
    except (EOFError, OSError):
        return b""
    finally:
        child.kill()
        child.join()
        receiver.close()


def _render_and_send(sender: "Connection", template: str, system: str, special: dict[str, str]) -> None:
    """Body of the child: what goes back is JSON, so that nothing of it is run by the parent."""
    try:
        _limit_this_process()
        answer = [_rendering(template, conversation, special) for conversation in _conversations(system)]
        sender.send_bytes(json.dumps(answer).encode())
    finally:
        os._exit(0)  # nothing of the parent's is flushed or cleaned up here, and no traceback is printed


def _limit_this_process() -> None:
    random.seed(0)
    try:
        import resource
    except ImportError:  # Windows; the parent waits no longer than `WAIT_SECONDS`
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    if sys.platform == "linux":  # elsewhere the limit is not kept by the system
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def _rendering(template: str, conversation: list[dict[str, Any]], special: dict[str, str]) -> Rendering:
    from jinja2 import TemplateError
    from transformers.utils import chat_template_utils

    utils: Any = chat_template_utils
    utils.datetime = SimpleNamespace(now=lambda: CLOCK)  # in this process alone
    try:
        texts, _ = utils.render_jinja_template(
            [conversation], chat_template=template, add_generation_prompt=True, **special
        )
        text = str(texts[0])
    except MemoryError:
        raise
    except Exception as error:  # a template can raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Rendering("", shortened(reason), isinstance(error, TemplateError))
    return Rendering(text) if len(text) <= LONGEST else Rendering("", f"it gives more than {LONGEST:,} characters")
