"""A vision-language adapter on a frozen 4-bit language model, for clinical reports.

It drafts for a clinician's eyes and never diagnoses.
"""

from vlm.version import __version__

__all__ = ["ClinicalVLM", "Report", "UserError", "__version__"]


def __getattr__(name: str):
    """Import on first use, so that `--help` and the data tools do not wait for PyTorch."""
    if name == "ClinicalVLM":
        from vlm.pretrained import ClinicalVLM

        return ClinicalVLM
    if name == "Report":
        from vlm.report import Report

        return Report
    if name == "UserError":
        from vlm.errors import UserError

        return UserError
    raise AttributeError(f"module 'vlm' has no attribute {name!r}")
