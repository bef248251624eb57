"""A vision-language adapter on a frozen 4-bit language model, for clinical reports.

    from vlm import ClinicalVLM
    model = ClinicalVLM.from_pretrained("runs/demo/adapter")
    print(model.predict("case.png", {"glucose": 8.7, "systolic": 145}))

It drafts for a clinician's eyes and never diagnoses.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vlm.version import __version__

if TYPE_CHECKING:
    from vlm.config import Config
    from vlm.config.parsing import load_config
    from vlm.errors import Stopped, UserError
    from vlm.evaluation.compare import compare
    from vlm.evaluation.run import evaluate_adapter as evaluate
    from vlm.inference.study_images import StudyImage
    from vlm.integrations.auto_classes import register_auto_classes
    from vlm.pretrained import ClinicalVLM
    from vlm.report import Report
    from vlm.training.run import train

__all__ = ["ClinicalVLM", "Config", "Report", "Stopped", "StudyImage", "UserError", "__version__", "compare",
           "evaluate", "load_config", "register_auto_classes", "train"]  # fmt: skip
_PLACES = {
    "ClinicalVLM": "vlm.pretrained:ClinicalVLM",
    "Config": "vlm.config:Config",
    "Report": "vlm.report:Report",
    "Stopped": "vlm.errors:Stopped",
    "StudyImage": "vlm.inference.study_images:StudyImage",
    "UserError": "vlm.errors:UserError",
    "compare": "vlm.evaluation.compare:compare",
    "evaluate": "vlm.evaluation.run:evaluate_adapter",
    "load_config": "vlm.config.parsing:load_config",
    "register_auto_classes": "vlm.integrations.auto_classes:register_auto_classes",
    "train": "vlm.training.run:train",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that `--help` and the data tools do not wait for PyTorch."""
    if name not in _PLACES:
        raise AttributeError(f"module 'vlm' has no attribute {name!r}")
    from vlm.errors import missing_extras

    module, _, attribute = _PLACES[name].partition(":")
    with missing_extras():
        return getattr(importlib.import_module(module), attribute)
