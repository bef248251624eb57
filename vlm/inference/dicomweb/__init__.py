"""Fetch a study from an archive by DICOMweb (WADO-RS), and store a draft there (STOW-RS). Needs the extra `dicom`."""

from vlm.inference.dicomweb.archive import Archive, check_address, is_uid
from vlm.inference.dicomweb.archive_error import ArchiveError

__all__ = ["Archive", "ArchiveError", "check_address", "is_uid"]
