"""Read the modality that a DICOM file names (0008,0060), such as CT: untrusted text, of which only codes are kept."""

import re
from collections.abc import Sequence
from typing import TypeGuard

from vlm.data.images.elements import read_elements
from vlm.data.images.file_types import file_type
from vlm.errors import UserError
from vlm.plain import shortened

HEAD = 1 << 20
"""Bytes of a file in which its header is looked for."""
MOST_MODALITIES = 16
"""Most modalities that an adapter keeps."""
_CODE = re.compile(r"[A-Z0-9_]{1,16}")


def is_modality(code: object) -> TypeGuard[str]:
    """Check whether this is a code that may be kept and shown."""
    return isinstance(code, str) and _CODE.fullmatch(code) is not None


def read_modality(data: bytes) -> str:
    """Read the code that a file, or its beginning, names; empty if it is no DICOM file or names none."""
    head = data[:HEAD]
    if file_type(head) != "DICOM":
        return ""
    try:
        code = read_elements("", head, ["Modality"])["Modality"].upper()
    except UserError:  # decoding says what is wrong with the file
        return ""
    return code if is_modality(code) else ""


def check_modalities(codes: Sequence[str]) -> None:
    """Raise `UserError` unless these are codes, at most 16, each once and in order."""
    for code in codes:
        if not is_modality(code):
            raise UserError(f"modalities: {shortened(code)} is no code of 1 to 16 capital letters, digits and _")
    if len(codes) > MOST_MODALITIES or list(codes) != sorted(set(codes)):
        raise UserError(f"modalities: must be at most {MOST_MODALITIES}, each once and in order")
