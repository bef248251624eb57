"""Run llama.cpp through its C interface, from the wheel `xllamacpp` (extra `llamacpp`): embeddings in, tokens out.

Decoding is greedy. The wheel's own server takes text alone, so its library is called directly. A structure whose
layout is not the one written here would end in a crash: only tested versions are accepted, and the defaults that the
library fills in must be found at their offsets.
"""

import ctypes
import struct
from collections.abc import Iterator
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
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), (pointer, number)),
        ("llama_get_memory", pointer, (pointer,)),
        ("llama_memory_seq_rm", ctypes.c_bool, (pointer, number, number, number)),
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
    """One GGUF file and one sequence."""

    def __init__(self, file: Path, threads: int, context: int = 2048) -> None:
        """Map the file; raises `UserError` if llama.cpp cannot read it."""
        self._library = library = _library()
        self._model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
        if not self._model:
            raise UserError(f"{file}: llama.cpp cannot load it")
        params = library.llama_context_default_params()
        for name, (place, default) in _CONTEXT.items():
            if struct.unpack_from("<i", params.bytes, place)[0] != default:
                raise UserError(f"--engine llamacpp: this build keeps {name} elsewhere; use --engine torch")
        wanted = {"n_ctx": context, "n_batch": context, "n_threads": threads, "n_threads_batch": threads}
        for name, value in wanted.items():
            struct.pack_into("<i", params.bytes, _CONTEXT[name][0], value)
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            raise UserError(f"{file}: llama.cpp cannot make a context of {context} tokens")
        self.context = context
        self.vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        self.hidden_size = library.llama_model_n_embd(self._model)
        self._kept = np.empty((0, self.hidden_size), np.float32)

    def close(self) -> None:
        """Free the library's context and model."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def generate(self, embeddings: np.ndarray, fixed: int, most: int, end: int) -> Iterator[int]:
        """Generate greedy tokens after a prompt of T × H embeddings, until `end` or `most` of them.

        The prefix KV cache of the first `fixed` positions, the same for every case, is computed once. Raises
        `UserError` for a prompt that does not fit into the context.
        """
        if len(embeddings) + most > self.context:
            raise UserError(f"a prompt of {len(embeddings)} tokens and {most} more exceed {self.context}")
        embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)
        start = fixed if np.array_equal(self._kept, embeddings[:fixed]) else 0
        self._library.llama_memory_seq_rm(self._library.llama_get_memory(self._context), 0, start, -1)
        self._kept = embeddings[:fixed].copy()
        self._decode(embeddings[start:], start)
        for place in range(len(embeddings), len(embeddings) + most):
            token = int(self.logits().argmax())
            if token == end:
                return
            yield token
            self._decode(np.array([token], dtype=np.int32), place)

    def logits(self) -> np.ndarray:
        """Return the logits after the last token; V, valid until the next one is decoded."""
        return np.ctypeslib.as_array(self._library.llama_get_logits_ith(self._context, -1), (self.vocabulary,))

    def _decode(self, what: np.ndarray, start: int) -> None:
        """Decode tokens (T, int32) or embeddings (T × H, float32) from position `start` on."""
        count = len(what)
        places = np.arange(start, start + count, dtype=np.int32)
        sequence = ctypes.c_int32(0)
        sequences = (ctypes.c_void_p * count)(*[ctypes.addressof(sequence)] * count)
        ones, wanted = np.ones(count, np.int32), np.zeros(count, np.int8)
        wanted[-1] = 1
        batch = _Batch(
            n_tokens=count,
            token=what.ctypes.data if what.ndim == 1 else None,
            embd=what.ctypes.data if what.ndim == 2 else None,
            pos=places.ctypes.data,
            n_seq_id=ones.ctypes.data,
            seq_id=ctypes.addressof(sequences),
            logits=wanted.ctypes.data,
        )
        if self._library.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp could not decode")
