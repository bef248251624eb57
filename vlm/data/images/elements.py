"""Read elements of an untrusted DICOM header as texts, before any pixels and without their values in a message."""

import contextlib
import logging
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from vlm.errors import UserError, require

DEFLATED = "1.2.840.10008.1.2.1.99"
PREAMBLE = bytes(128) + b"DICM"
LONGEST_ELEMENT = 200
"""Characters of an element's text that are read."""


def read_elements(where: str, data: bytes, names: Sequence[str]) -> dict[str, str]:
    """Read elements of the groups up to 0020, before any pixels, as texts, empty where missing.

    Several values of one element are joined by a backslash, as they are stored. `data` may be the beginning of a file.
    Raises `UserError` that begins with `where`, without any value.
    """
    require("pydicom", f"{where}: DICOM files need pydicom")
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_partial

    data = data if data[128:132] == b"DICM" else PREAMBLE + data
    silence()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if transfer_syntax(data) == DEFLATED:
                raise UserError(f"{where}: deflated, which may inflate without bound; store it uncompressed")
            tags = [tag for name in names if (tag := tag_for_keyword(name)) is not None]
            found = read_partial(BytesIO(data), lambda tag, vr, length: tag >> 16 > 0x20, specific_tags=list(tags))
            return {name: _text(found.get(name)) for name in names}
    except UserError:
        raise
    except Exception:  # a broken header can raise nearly anything, with its values in the message
        raise UserError(f"{where}: not a readable DICOM file: its header is broken") from None


def _text(value: Any) -> str:
    from pydicom.multival import MultiValue

    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")
    return text[:LONGEST_ELEMENT].strip()


def silence() -> None:
    """Disable the libraries' messages, which quote header values."""
    for name in ("pydicom", "pylibjpeg", "openjpeg"):
        logging.getLogger(name).disabled = True


def transfer_syntax(data: bytes) -> str:
    """Read the transfer syntax from the file meta alone: opening a deflated object inflates all of it.

    Half a megabyte may inflate to a gigabyte. Parsed as pydicom does: if the first element has no known VR, as if
    none had one.
    """
    from pydicom.filereader import read_dataset

    for implicit in (False, True):
        meta = BytesIO(data)
        meta.seek(132)
        elements = read_dataset(meta, implicit, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        with contextlib.suppress(NotImplementedError):
            for first in list(elements.keys())[:1]:
                elements[first]  # access converts, and so validates it
            return str(elements.get("TransferSyntaxUID", ""))
    return ""
