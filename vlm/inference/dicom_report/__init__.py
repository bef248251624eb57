"""Write a draft as DICOM objects, filed with the study that its images came from.

A Structured Report, a PDF, and pictures of its page. All are drafts: not complete, not verified. They need the
extra `dicom`.
"""

from vlm.inference.dicom_report.drafted_objects import DraftedObjects, check_objects, label_codes
from vlm.inference.dicom_report.source_images import SourceImages, study_day, study_uid

__all__ = ["DraftedObjects", "SourceImages", "check_objects", "label_codes", "study_day", "study_uid"]
