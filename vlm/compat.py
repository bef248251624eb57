"""Names that differ between the supported versions of a library."""

import importlib
from types import ModuleType


def hub_http() -> ModuleType:
    """Return the HTTP client that the Hub's client uses: `httpx` before huggingface-hub 2.0, `httpx2` from then on."""
    from huggingface_hub.errors import HfHubHTTPError

    return importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
