"""Render a base model's chat template once, with gaps for the evidence and the user's text.

A template is untrusted code: it may loop for ever, ask for the date or draw at random. So it is rendered in a child
process, with limits of time and memory, a fixed clock and a fixed seed.
"""

import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm.errors import UserError
from vlm.host import limit_process
from vlm.plain import shortened

if TYPE_CHECKING:  # passed in by the caller; its library takes seconds to import
    from multiprocessing.connection import Connection

    from transformers import PreTrainedTokenizerBase

EVIDENCE, WORDS = "\ue000", "\ue001"
"""Private-use characters that mark the two gaps during rendering; user text is never rendered."""
GAP = EVIDENCE + WORDS
CLOCK = datetime(2024, 7, 26)
"""Fixed current time of a template: training and inference, and all their processes, must render the same text."""
CPU_SECONDS = 5
WAIT_SECONDS = {"fork": 20, "spawn": 60}
"""Time limit for a child's answer by start method, generous for a busy machine."""
MEMORY = 256 << 20
"""Memory limit of rendering, bytes."""
LONGEST = 1 << 18
"""Largest length of a template and of its output, characters."""


class PromptIds(NamedTuple):
    """Token ids of the template before, between and after the evidence and text gaps."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", system: str, as_before: bool = False) -> PromptIds:
    """Tokenize the chat template around its gaps, or the plain prompt if the base model has no template.

    A tokenizer that prepends a BOS token adds exactly one here. `as_before` reproduces the ids of earlier versions,
    which did not save them. Raises `UserError` for a template that does not show one user message, and for one that
    fails or exceeds its limits.
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
    """Rendered template of one message layout."""

    text: str
    error: str = ""
    refused: bool = False
    """True if the template itself raised the error, as templates without a system role do."""


def _choose(rendered: Sequence[Rendering], system: str, as_before: bool) -> str:
    """Choose the first rendering that has each gap once and in order, preferably with the system message.

    If a template has no system turn or hides it, the system message goes into the user turn.
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
    """List the message layouts that templates expect: two turns or one, as text or as a list of parts."""
    two, one = [("system", system), ("user", GAP)], [("user", f"{system}\n{GAP}")]
    kinds: list[Callable[[str], Any]] = [lambda text: text, lambda text: [{"type": "text", "text": text}]]
    return [[{"role": role, "content": kind(text)} for role, text in turns] for turns in (two, one) for kind in kinds]


@lru_cache(maxsize=64)
def _render(template: str, system: str, special: tuple[tuple[str, str], ...]) -> tuple[Rendering, ...]:
    """Render every conversation in a child process; raises `UserError` where it exceeds its limits."""
    # A fork starts at once, but may deadlock if another thread holds a lock at that moment.
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
    """Run `_render_and_send` in a child; return its output, empty if a limit ended it, None if it timed out."""
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
    """Render in the child and send JSON, so that the parent executes nothing of it."""
    try:
        from transformers.utils import chat_template_utils  # noqa: F401 early ones import torch: before the limits

        random.seed(0)
        limit_process(MEMORY, CPU_SECONDS)  # where it cannot, the parent waits no longer than `WAIT_SECONDS`
        answer = [_rendering(template, conversation, special) for conversation in _conversations(system)]
        sender.send_bytes(json.dumps(answer).encode())
    finally:
        os._exit(0)  # skip the parent's flushes and exit handlers, and print no traceback


def _rendering(template: str, conversation: list[dict[str, Any]], special: dict[str, str]) -> Rendering:
    from jinja2 import TemplateError
    from transformers.utils import chat_template_utils

    utils: Any = chat_template_utils
    utils.datetime = SimpleNamespace(now=lambda: CLOCK)  # patches this child process only
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
