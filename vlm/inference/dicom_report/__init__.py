"""Write a draft as DICOM objects: a Structured Report and a PDF, filed with the study that its images came from.

Both are drafts: not complete, not verified. They need the extra `dicom`.
"""

from vlm.inference.dicom_report.drafted_objects import DraftedObjects, check_objects, label_codes
from vlm.inference.dicom_report.source_images import SourceImages, study_uid

__all__ = ["DraftedObjects", "SourceImages", "check_objects", "label_codes", "study_uid"]
