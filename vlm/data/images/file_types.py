"""Detect file types by their first bytes: supported images, and descriptions of other files."""

import re
import zlib

from vlm.data.images.tiff import is_tiff

READ = "PNG, JPEG, TIFF, BMP, WebP, GIF, PNM and DICOM are read"
_VR = b"AE AS AT CS DA DS DT FD FL IS LO LT OB OW PN SH SL SQ SS ST TM UI UL UN US UT".split()
_OTHERS = (
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II*\0\x10\0\0\0CR", "a camera's raw file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"IIRO", "a camera's raw file"),
    (b"IIU\0", "a camera's raw file"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "a Radiance picture"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\xfd7zXZ\0", "an XZ archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (b"OggS", "a video or sound (Ogg)"),
    (b"FLV\x01", "a video (Flash)"),
    (b"\0\0\x01\xba", "a video (MPEG)"),
    (b"\0\0\x01\xb3", "a video (MPEG)"),
    (b"0&\xb2u\x8ef\xcf\x11", "a video (Windows Media)"),
    (b"\0\0\x01\0", "an icon"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"NRRD000", "an NRRD volume"),
    (b"ObjectType", "a MetaImage volume"),
    (b"NDims", "a MetaImage volume"),
    (b"SQLite format 3\0", "a database"),
    (b"PAR1", "a Parquet table"),
    (b"\0\x05\x16\x07", "what a Mac keeps beside a file; the picture has the name without ._"),
    (b"version https://git-lfs", "a Git LFS pointer, not the picture; git lfs pull fetches it"),
    (b"/annex/objects/", "a git-annex pointer, not the picture; git annex get fetches it"),
)  # fmt: skip


def file_type(data: bytes) -> str:
    """Detect `PNG`, `JPEG`, `TIFF`, `BMP`, `WebP`, `GIF`, `PNM` or `DICOM` by the first bytes; empty if none."""
    if data[128:132] == b"DICM":
        return "DICOM"
    if is_tiff(data) and not data.startswith(b"II*\0\x10\0\0\0CR"):
        return "TIFF"
    magics = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF87a": "GIF", b"GIF89a": "GIF"}
    for magic, kind in magics.items():
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:2] == b"BM" and data[14:18] in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x34\0\0\0", b"\x38\0\0\0", b"\x40\0\0\0",
                                             b"\x6c\0\0\0", b"\x7c\0\0\0"):  # fmt: skip
        return "BMP"
    if re.match(rb"P[1-6]\s", data):
        return "PNM"
    return "DICOM" if _is_bare_dicom(data) else ""


def _is_bare_dicom(data: bytes) -> bool:
    """Check for a data element of group 0002 or 0008 at the start, as in DICOM without its preamble."""
    group, size = int.from_bytes(data[:2], "little"), int.from_bytes(data[4:8], "little")
    return group in (2, 8) and len(data) > 16 and (data[4:6] in _VR or (size <= 256 and not size % 2))


def describe_other_file(data: bytes) -> str:
    """Describe a file that is no supported image, and list the supported formats."""
    if not data:
        return "the file is empty"
    if not data.strip(b"\0"):
        return "the file holds nothing but zeros; was it copied whole?"
    kind = next((kind for magic, kind in _OTHERS if data.startswith(magic)), "") or _by_structure(data[:4096])
    if ";" in kind:  # the description already says what to do
        return f"it seems to be {kind}"
    return f"it seems to be {kind}; {READ}" if kind else READ


def _by_structure(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        return "HEIC or AVIF" if head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif",
                                                 b"avis") else (
            "a camera's raw file" if head[8:12] == b"crx " else "a video (MP4 or QuickTime)")  # fmt: skip
    if head[4:8] in (b"moov", b"mdat", b"wide"):
        return "a video (QuickTime)"
    if head[:4] == b"RIFF":
        return "a video (AVI)" if head[8:11] == b"AVI" else "sound or another RIFF file"
    if head[:2] == b"\x1f\x8b":
        return "a NIfTI volume (.nii.gz)" if _is_nifti(_gunzipped(head)) else "a gzip archive"
    if _is_nifti(head):
        return "a NIfTI volume"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")) or b"<html" in text[:1024]:
        return "a web page; was a sign-in asked for when it was downloaded?"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "an SVG drawing"
    if text.startswith((b"<?xml", b"<error")):
        return "XML"
    if b"\0" in head:
        return ""
    odd = sum(head.count(byte) for byte in (*range(9), *range(14, 32)))
    return "text" if not odd and _is_utf8(head) else ""


def _gunzipped(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(head, 400)
    except zlib.error:
        return b""


def _is_nifti(head: bytes) -> bool:
    first = head[344:348] in (b"n+1\0", b"ni1\0")
    return first or head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n")


def _is_utf8(head: bytes) -> bool:
    try:
        head[: max(len(head) - 3, 1)].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 8  # a character cut off by the end of the sample
    return True
