"""Save an adapter as a model of MLflow, and draft a pandas frame with it; no pickle is written or read.

MLflow keeps the adapter folder as it is (`data_path`) and loads it by this module (`loader_module`), which opens it as
`ClinicalVLM.from_pretrained` does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.adapter import open_adapter
from vlm.adapter.validate import check_sources
from vlm.data.images.find import text_cell
from vlm.data.images.square import Square, decode_square
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError, require
from vlm.inference.engine import Prepared, ReportEngine
from vlm.pretrained import ClinicalVLM
from vlm.version import __version__

if TYPE_CHECKING:
    import pandas as pd

IMAGE, CONTEXT = "image", "context"
"""Columns of a frame beside the vitals."""
BATCH = 16
"""Cases drafted together."""


def save_mlflow_model(adapter: str | Path, path: str | Path, revision: str | None = None) -> None:
    """Write an adapter folder or Hub id as a model folder of MLflow.

    Raises `UserError` as `open_adapter` does, for a base that only another machine has, and without MLflow.
    """
    _pyfunc().save_model(path=str(path), **_options(adapter, revision))


def log_mlflow_model(adapter: str | Path, name: str, revision: str | None = None, **options: Any) -> Any:
    """Log an adapter as a model to the active run of MLflow, and return what MLflow says of it.

    `options` are those of `mlflow.pyfunc.log_model`, such as `registered_model_name`. Raises `UserError` as
    `save_mlflow_model` does.
    """
    return _pyfunc().log_model(name=name, **_options(adapter, revision), **options)


def _pyfunc() -> Any:
    require("mlflow", "a model of MLflow needs it")
    import mlflow.pyfunc

    return mlflow.pyfunc


def _options(adapter: str | Path, revision: str | None) -> dict[str, Any]:
    opened = open_adapter(adapter, revision)
    check_sources(opened.path, opened.config.model)  # MLflow's copy no longer tells that it was fetched
    return {
        "loader_module": __name__,
        "data_path": str(opened.path.resolve()),
        "pip_requirements": [f"clinical-vlm[mlflow]=={__version__}"],  # else MLflow loads the model to find out
    }


def _load_pyfunc(data_path: str) -> "FrameDrafter":
    """Load the adapter of a model folder; MLflow calls this."""
    return FrameDrafter(ClinicalVLM.from_pretrained(data_path))


class FrameDrafter:
    """Draft the cases of a pandas frame."""

    def __init__(self, model: ClinicalVLM) -> None:
        self.engine = ReportEngine(model)

    def predict(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Draft a report for each row, under its index.

        Columns are `image` (a file's path or its bytes, empty for none), `context`, and vitals by name. Returns
        `draft`, `probability_LABEL` for each label, `warnings` and `notice`. Raises `UserError` for another column,
        and for a row that cannot be read, with its index.
        """
        import pandas as pd

        spec = self.engine.model.spec
        vitals = vital_columns(frame, spec.schema)
        reports = self.engine.reports(list(self._prepared(frame, vitals)), BATCH)
        rows = [
            [report.text, *report.probabilities.values(), "; ".join(report.warnings), report.notice]
            for report in reports
        ]
        labels = [f"probability_{label}" for label in spec.labels]
        return pd.DataFrame(rows, index=frame.index, columns=["draft", *labels, "warnings", "notice"])

    def _prepared(self, frame: "pd.DataFrame", vitals: list[str]) -> Iterator[Prepared]:
        for index, cells in zip(frame.index, frame.to_dict("records"), strict=True):
            try:
                image, context = self._image(cells.get(IMAGE)), text_cell(cells.get(CONTEXT))
                yield self.engine.prepare(image, {name: cells[name] for name in vitals}, context)
            except UserError as error:
                raise UserError(f"row {index}: {error}") from None

    def _image(self, cell: Any) -> str | Square | None:
        """Return the path in a cell, the square of its bytes, or None."""
        if isinstance(cell, bytes | bytearray):
            return decode_square(bytes(cell), "the image", self.engine.model.spec.image)
        return text_cell(cell) or None


def vital_columns(frame: "pd.DataFrame", schema: VitalsSchema) -> list[str]:
    """List the columns of vitals; raises `UserError` for one that is neither a vital nor another known column."""
    found = [str(column) for column in frame.columns if column not in (IMAGE, CONTEXT)]
    for column in found:
        if not schema.names_in(column) and not schema.is_study_time(column):
            known = ", ".join(schema.names)
            raise UserError(f"column {column}: is no vital of the adapter, which knows {known}; others are {IMAGE} and "
                            f"{CONTEXT}; leave it out")  # fmt: skip
    return found
