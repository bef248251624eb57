"""An adapter on the Hugging Face Hub."""

from pathlib import Path

from vlm.adapter.layout import FILES, REQUIRED
from vlm.errors import UserError


def resolve(adapter: str, revision: str | None = None) -> Path:
    """The local folder of an adapter, fetched from the Hub where it is an id.

    Raises `UserError` where neither is there, or a file of it is missing.
    """
    folder = Path(adapter) if Path(adapter).is_dir() else _fetch(adapter, revision)
    for name in REQUIRED:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name}; not a complete adapter folder")
    return folder


def _fetch(adapter: str, revision: str | None) -> Path:
    if adapter.count("/") != 1 or adapter.startswith((".", "/", "~")):
        raise UserError(f"{adapter}: no such adapter folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(adapter, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{adapter}: no such folder, and the Hub did not give it: {str(error).splitlines()[0]}"
        ) from None
