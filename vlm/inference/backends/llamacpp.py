"""Run llama.cpp through its C interface, from the wheel `xllamacpp` (extra `llamacpp`): embeddings in, tokens out.

Decoding is greedy, of several prompts at once as parallel sequences. The wheel's own server takes text alone, so its
library is called directly. A structure whose layout is not the one written here would end in a crash: only tested
versions are accepted, and the defaults that the library fills in must be found at their offsets.
"""

import ctypes
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import UserError

TESTED = ("2026.10.11549",)
"""Tested versions of the wheel, whose structures are those below."""


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    )


class _Params(ctypes.Structure):
    """The parameters of a model or a context, of which a few are set by their byte offset; larger than either."""

    _fields_ = (("bytes", ctypes.c_ubyte * 512),)


_CONTEXT = {"n_ctx": (0, 512), "n_batch": (4, 2048), "n_ubatch": (8, 512), "n_seq_max": (12, 1), "n_threads": (28, 4),
            "n_threads_batch": (32, 4), "type_k": (104, 1), "type_v": (108, 1)}  # fmt: skip
"""Field → its byte offset, and the default there."""
_FLAGS, _FLAG_DEFAULTS, _UNIFIED = 136, b"\x00\x01\x01\x01\x01\x00", 5
"""Byte offset of the flags, their defaults, and which of them is `kv_unified`: the sequences share their cells."""


@cache
def _library() -> Any:
    """Load the C functions; raises `UserError` where the wheel is missing or is of an untested version."""
    try:
        found = version("xllamacpp")
    except PackageNotFoundError:
        raise UserError("--engine llamacpp: needs the package; pip install 'clinical-vlm[llamacpp]'") from None
    if found not in TESTED:
        raise UserError(f"--engine llamacpp: xllamacpp {found} was not tried; pip install xllamacpp=={TESTED[-1]}")
    import xllamacpp.xllamacpp as module

    library = ctypes.CDLL(module.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_backend_init", None, ()),
        ("llama_log_set", None, (pointer, pointer)),
        ("llama_model_default_params", _Params, ()),
        ("llama_context_default_params", _Params, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, _Params)),
        ("llama_init_from_model", pointer, (pointer, _Params)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_vocab_n_tokens", number, (pointer,)),
        ("llama_model_n_embd", number, (pointer,)),
        ("llama_decode", number, (pointer, _Batch)),
        ("llama_n_ctx_seq", ctypes.c_uint32, (pointer,)),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), (pointer,)),
        ("llama_get_memory", pointer, (pointer,)),
        ("llama_memory_seq_rm", ctypes.c_bool, (pointer, number, number, number)),
        ("llama_memory_seq_cp", None, (pointer, number, number, number, number)),
        ("llama_free", None, (pointer,)),
        ("llama_model_free", None, (pointer,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(ctypes.cast(_silent, pointer), None)
    library.llama_backend_init()
    return library


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, data: int) -> None:
    """Discard llama.cpp's log."""


class LlamaCpp:
    """One GGUF file, and a KV cache whose cells the sequences share."""

    def __init__(self, file: Path, threads: int, context: int = 4096, slots: int = 32) -> None:
        """Map the file; raises `UserError` if llama.cpp cannot read it.

        `context` is the number of cells of the KV cache, a token each, and `slots` the most prompts at once.
        """
        self._library = library = _library()
        self._model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
        if not self._model:
            raise UserError(f"{file}: llama.cpp cannot load it")
        wanted = {"n_ctx": context, "n_batch": context, "n_seq_max": slots + 1, "n_threads": threads,
                  "n_threads_batch": threads}  # fmt: skip
        self._context = library.llama_init_from_model(self._model, _context_params(library, wanted))
        if not self._context:
            raise UserError(f"{file}: llama.cpp cannot make a context of {context} tokens")
        if library.llama_n_ctx_seq(self._context) != context:
            raise UserError("--engine llamacpp: this build does not share its cells; use --engine torch")
        self._memory = library.llama_get_memory(self._context)
        self.context, self.slots = context, slots
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self.hidden_size = library.llama_model_n_embd(self._model)
        self._prefix = np.empty((0, self.hidden_size), np.float32)
        self._outputs = 0

    def close(self) -> None:
        """Free the library's context and model."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def groups(self, lengths: Sequence[int], most: int) -> Iterator[slice]:
        """Split prompts of these lengths, in their order, into groups that the slots and cells hold with their drafts.

        Raises `UserError` for a prompt that does not fit alone.
        """
        start = cells = 0
        for number, length in enumerate(lengths):
            if length + most > self.context:
                raise UserError(f"a prompt of {length} tokens and {most} more exceed {self.context}")
            if number - start == self.slots or cells + length + most > self.context:
                yield slice(start, number)
                start, cells = number, 0
            cells += length + most
        yield slice(start, len(lengths))

    def generate(self, prompts: Sequence[np.ndarray], fixed: int, most: int, end: int) -> Iterator[np.ndarray]:
        """Generate greedy tokens after a group of B prompts, T × H embeddings each; yields the next token of each, B.

        A prompt that has ended has `end` from there on; it stops when all have, or after `most` tokens. The KV cache of
        the first `fixed` positions, the same for every prompt, is computed once and shared.
        """
        rows = np.arange(len(prompts))
        self._read(prompts, fixed)
        lengths, tokens = np.array([len(prompt) for prompt in prompts]), np.full(len(prompts), end, np.int32)
        for step in range(most):
            tokens[rows] = self.logits().argmax(axis=1)
            rows = rows[tokens[rows] != end]
            if not len(rows):
                return
            yield tokens.copy()
            self._decode(tokens[rows], lengths[rows] + step, rows + 1, np.ones(len(rows), bool))

    def logits(self) -> np.ndarray:
        """Return the logits after the last token of each prompt that was decoded; valid until the next call, B × V."""
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._context), (self._outputs, self.vocabulary))

    def _read(self, prompts: Sequence[np.ndarray], fixed: int) -> None:
        """Decode the prompts as the sequences 1 to B, all in one call; sequence 0 keeps what they begin with."""
        prefix = np.ascontiguousarray(prompts[0][:fixed], dtype=np.float32)
        for sequence in range(1, self.slots + 1):
            self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        if not np.array_equal(self._prefix, prefix):
            self._library.llama_memory_seq_rm(self._memory, 0, -1, -1)
            self._prefix = prefix
            if fixed:
                self._decode(prefix, np.arange(fixed), np.zeros(fixed), np.zeros(fixed, bool))
        counts = [len(prompt) - fixed for prompt in prompts]
        for sequence in range(1, len(prompts) + 1):
            self._library.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        places = np.concatenate([np.arange(fixed, fixed + count) for count in counts])
        last = np.zeros(sum(counts), bool)
        last[np.cumsum(counts) - 1] = True
        rest = np.concatenate([prompt[fixed:] for prompt in prompts])  # all tokens × H
        self._decode(rest, places, np.repeat(np.arange(len(prompts)) + 1, counts), last)

    def _decode(self, what: np.ndarray, places: np.ndarray, sequences: np.ndarray, wanted: np.ndarray) -> None:
        """Decode T tokens or T × H embeddings at their positions of their sequences; logits of the `wanted` ones, T."""
        kind = np.int32 if what.ndim == 1 else np.float32
        what, places = np.ascontiguousarray(what, dtype=kind), places.astype(np.int32)
        sequences, ones, flags = sequences.astype(np.int32), np.ones(len(what), np.int32), wanted.astype(np.int8)
        pointers = sequences.ctypes.data + sequences.itemsize * np.arange(len(what), dtype=np.uintp)
        batch = _Batch(
            n_tokens=len(what),
            token=what.ctypes.data if what.ndim == 1 else None,
            embd=what.ctypes.data if what.ndim == 2 else None,
            pos=places.ctypes.data,
            n_seq_id=ones.ctypes.data,
            seq_id=pointers.ctypes.data,
            logits=flags.ctypes.data,
        )
        if self._library.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode")
        self._outputs = int(flags.sum())


def _context_params(library: Any, wanted: dict[str, int]) -> _Params:
    """Set some of a context's parameters; raises `UserError` where the defaults are not found at their offsets."""
    params = library.llama_context_default_params()
    found = {name: struct.unpack_from("<i", params.bytes, place)[0] for name, (place, _) in _CONTEXT.items()}
    moved = [name for name, (_, default) in _CONTEXT.items() if found[name] != default]
    if bytes(params.bytes[_FLAGS : _FLAGS + len(_FLAG_DEFAULTS)]) != _FLAG_DEFAULTS:
        moved.append("kv_unified")
    if moved:
        raise UserError(f"--engine llamacpp: this build keeps {moved[0]} elsewhere; use --engine torch")
    for name, value in wanted.items():
        struct.pack_into("<i", params.bytes, _CONTEXT[name][0], value)
    params.bytes[_FLAGS + _UNIFIED] = True
    return params
