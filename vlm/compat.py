"""Resolve names that differ between the supported versions of a library."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

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


def dequantised_tensors() -> Any:
    """Return the config that dequantises compressed-tensors at load; `run_compressed` in early Transformers 5."""
    import inspect

    from transformers import CompressedTensorsConfig

    now = "dequantize" in inspect.signature(CompressedTensorsConfig).parameters
    return CompressedTensorsConfig(dequantize=True) if now else CompressedTensorsConfig(run_compressed=False)


def needs_bitsandbytes(least: str) -> str:
    """Return the way out where bitsandbytes is older than a version such as `0.50`; empty where it is not."""
    from importlib.metadata import version

    found = version("bitsandbytes")
    numbers = [[int(part) for part in text.split(".")[:2]] for text in (found, least)]
    if numbers[0] >= numbers[1]:
        return ""
    return f"needs bitsandbytes ≥ {least}, this is {found}; pip install --upgrade bitsandbytes"


class _RealLinspace(TorchFunctionMode):
    """Make `torch.linspace` on the CPU: earlier timm reads its drop-path rates from one."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        real = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**real, **(kwargs or {})})


@contextmanager
def meta_device() -> Iterator[None]:
    """Build modules on the meta device, without memory for their weights."""
    with torch.device("meta"), _RealLinspace():
        yield
