"""The trackers of `train.report_to`: those of Transformers, by name. They get numbers and options, never a case.

What a tracker is told: the rows of log.jsonl, and Transformers' own arguments, in which the run's name and folder
stand as the config gives them. Ids, reports, images, column names and the table's place are in neither.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from vlm.errors import UserError

PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""What pip calls a tracker that Transformers calls otherwise."""


def make_trackers(names: Sequence[str], folder: Path) -> list[TrainerCallback]:
    """The callbacks of these trackers; TensorBoard writes to `folder/tensorboard`.

    Nothing is written or sent before training begins. Raises `UserError` for a name that Transformers does not know
    and for a tracker that is not installed.
    """
    trackers = [_make(name) for name in names]
    for tracker in trackers:
        if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
            tracker.logging_dir = str(folder / "tensorboard")
    return trackers


def _make(name: str) -> TrainerCallback:
    if name not in INTEGRATION_TO_CALLBACK:
        near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        way_out = f"did you mean {near[0]}?" if near else f"Transformers has {known}"
        raise UserError(f"train.report_to: no tracker {name}; {way_out}")
    try:
        return get_reporting_integration_callbacks(name)[0]()  # type: ignore[no-any-return]
    except (ImportError, RuntimeError):
        package = PACKAGES.get(name, name)
        raise UserError(f"train.report_to: {name} is not installed; pip install {package}") from None
