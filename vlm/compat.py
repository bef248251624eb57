"""Resolve names that differ between the supported versions of a library."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hub_http() -> ModuleType:
    """Return the HTTP client that the Hub's client uses: `httpx` before huggingface-hub 2.0, `httpx2` from then on."""
    from huggingface_hub.errors import HfHubHTTPError

    return importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])


def enable_activation_checkpointing(model: "PreTrainedModel") -> None:
    """Checkpoint the layers' activations; early Transformers 5 calls this gradient checkpointing."""
    now, before = "activation_checkpointing_enable", "gradient_checkpointing_enable"
    getattr(model, now if hasattr(model, now) else before)()


def cache_argument() -> str:
    """Return the argument of models and of `generate` that takes a KV cache; recent Transformers 5 calls it `cache`."""
    from transformers.generation import utils

    return "cache" if "cache" in getattr(utils, "ALL_CACHE_NAMES", ()) else "past_key_values"


def cache_of(output: Any) -> Any:
    """Return the KV cache in a model's output; None without one."""
    found = (getattr(output, name, None) for name in (cache_argument(), "past_key_values"))
    return next((cache for cache in found if cache is not None), None)


def dequantised_tensors() -> Any:
    """Return the config that dequantises compressed-tensors at load; `run_compressed` in early Transformers 5."""
    import inspect

    from transformers import CompressedTensorsConfig

    now = "dequantize" in inspect.signature(CompressedTensorsConfig).parameters
    return CompressedTensorsConfig(dequantize=True) if now else CompressedTensorsConfig(run_compressed=False)


def dequantised_gguf() -> dict[str, Any]:
    """Return the options that dequantise GGUF at load; early Transformers 5 always does, and has no config for it."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def needs_bitsandbytes(least: str) -> str:
    """Return the way out where bitsandbytes is older than a version such as `0.50`; empty where it is not."""
    from importlib.metadata import version

    found = version("bitsandbytes")
    numbers = [[int(part) for part in text.split(".")[:2]] for text in (found, least)]
    if numbers[0] >= numbers[1]:
        return ""
    return f"needs bitsandbytes ≥ {least}, this is {found}; pip install --upgrade bitsandbytes"


@contextmanager
def meta_device() -> Iterator[None]:
    """Build and try modules on the meta device, without memory for their weights.

    Autocast is that of the CPU meanwhile: PyTorch has none for the meta device, and earlier timm and Transformers ask.
    """

    def of_the_cpu(call: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any, **options: Any) -> Any:
            options = {key: "cpu" if value == "meta" else value for key, value in options.items()}
            return call(*("cpu" if value == "meta" else value for value in args), **options)

        return asked

    with (
        torch.device("meta"),
        patch.object(torch.autocast, "__init__", of_the_cpu(torch.autocast.__init__)),
        patch.object(torch, "is_autocast_enabled", of_the_cpu(torch.is_autocast_enabled)),
    ):
        yield
