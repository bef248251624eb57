"""What `infer.py` does: check the inputs, load the adapter, stream one draft or write those of a table."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from transformers.utils import logging as transformers_logging

from vlm.adapter import read_config, resolve
from vlm.data.images import read_image
from vlm.device import choose_threads
from vlm.errors import UserError
from vlm.inference.engine import MAX_SECONDS, Engine
from vlm.inference.engines import make_engine
from vlm.inference.report import Report
from vlm.untrusted import printable

if TYPE_CHECKING:  # one case needs no tables, and their libraries take a second to import
    from vlm.inference.many import Counts, TableJob
    from vlm.inference.vllm import VLLMServer


def draft_case(
    adapter: str,
    image: str | None,
    vitals: str,
    base: str | None,
    max_new_tokens: int,
    stream: TextIO | None,
    engine: str = "torch",
    revision: str | None = None,
    server: "VLLMServer | None" = None,
    max_seconds: float = MAX_SECONDS,
) -> Report:
    """Draft one report, printing its words to `stream` as they come.

    The inputs are checked before the model is loaded, so that a typing error costs no wait. Raises `UserError`
    for an unreadable image, an unknown or non-numeric vital, and an adapter that cannot be loaded.
    """
    _prepare_libraries()
    folder = resolve(adapter, revision)
    values = read_vitals(vitals)
    read_config(folder).spec.schema.parse(values, "--vitals")
    if image is not None:
        read_image(image)
    drafter = make_engine(engine, folder, base, server)
    drafter.max_seconds = max_seconds
    return drafter.predict([(image, values)], max_new_tokens=max_new_tokens, **_streaming(drafter, stream))[0]


def draft_table(
    adapter: str,
    job: "TableJob",
    base: str | None,
    resume: bool,
    engine: str = "torch",
    revision: str | None = None,
    server: "VLLMServer | None" = None,
    max_seconds: float = MAX_SECONDS,
) -> "Counts":
    """Draft the report of every row of a table; see `vlm.inference.many`.

    The job is checked before the model is loaded. Raises `UserError` as `TableJob.check` and `load` do.
    """
    _prepare_libraries()
    folder = resolve(adapter, revision)
    made_by = job.check(folder, read_config(folder).spec.schema, resume)
    drafter = make_engine(engine, folder, base, server)
    drafter.max_seconds = max_seconds
    return job.run(drafter, made_by)


def _prepare_libraries() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(choose_threads(0).value)


def _streaming(engine: Engine, stream: TextIO | None) -> dict[str, Any]:
    if stream is None:
        return {}
    from transformers import TextStreamer

    class Words(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(printable(text), end="\n" if stream_end else "", flush=True, file=stream)

    return {"streamer": Words(engine.model.tokenizer, skip_special_tokens=True)}


def read_vitals(text: str) -> dict[str, Any]:
    """`name=value, name=value`, or the path of a JSON file that holds one object of names and values."""
    if text.strip().endswith(".json"):
        return _read_vitals_file(Path(text.strip()))
    values: dict[str, Any] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        if not equals and values and part.strip()[0].isdigit():
            last = f"{list(values)[-1]}={list(values.values())[-1]}"
            way_out = f"write {last}.{part.strip()} with a point, or a thousand without a comma"
            raise UserError(f"--vitals: {last},{part.strip()}: a comma stands between two values; {way_out}")
        if not equals or not name.strip():
            raise UserError(f'--vitals: {part.strip()!r} is no name=value; write "glucose=8.7, bp=145/90"')
        if name.strip() in values:
            raise UserError(f"--vitals: {name.strip()} is given twice")
        values[name.strip()] = value.strip()
    return values


def _read_vitals_file(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot read the vitals: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f'{file}: vitals are one object, such as {{"glucose": 8.7, "bp": "145/90"}}')
    return values
