"""An adapter as a model of MLflow: drafts of a frame, and no pickle anywhere."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.hub_adapters import trained
from vlm import ClinicalVLM, UserError
from vlm.adapter import save
from vlm.integrations.mlflow_model import FrameDrafter, save_mlflow_model, vital_columns
from vlm.version import __version__

__all__ = ["trained"]  # fixture

needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: pip install 'clinical-vlm[mlflow]'"
)


@pytest.fixture(autouse=True)
def no_telemetry(monkeypatch) -> None:
    """MLflow would tell its makers of each model; it reads this as it is imported."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module")
def adapter(trained: ClinicalVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(trained, tmp_path_factory.mktemp("mlflow") / "adapter")


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Three cases: an image by its path, one by its bytes, and none."""
    file = tmp_path_factory.mktemp("pictures") / "case.png"
    cv2.imwrite(str(file), np.random.default_rng(2).integers(0, 256, (40, 40), np.uint8))
    return pd.DataFrame(
        {"image": [str(file), file.read_bytes(), None], "glucose": [8.7, 5.0, np.nan], "bp": ["145/90", None, "110/70"],
         "context": ["cough", "", None]},
        index=["a", "b", "c"],
    )  # fmt: skip


def wanted_of(trained: ClinicalVLM, frame: pd.DataFrame) -> pd.DataFrame:
    path = frame["image"].iloc[0]
    cases = [(path, {"glucose": 8.7, "bp": "145/90"}, "cough"), (path, {"glucose": 5.0}), (None, {"bp": "110/70"})]
    reports = trained.predict_many(cases)
    rows = [{"draft": r.text} | {f"probability_{label}": p for label, p in r.probabilities.items()} for r in reports]
    rest = [{"warnings": "; ".join(r.warnings), "notice": r.notice} for r in reports]
    return pd.DataFrame([row | more for row, more in zip(rows, rest, strict=True)], index=frame.index)


def test_a_frame_gives_the_drafts_and_probabilities_of_predict(trained, frame) -> None:
    drafted = FrameDrafter(trained).predict(frame)
    pd.testing.assert_frame_equal(drafted, wanted_of(trained, frame), check_exact=False, rtol=1e-5)
    assert "no image given" in drafted.loc["c", "warnings"] and "no image given" not in drafted.loc["b", "warnings"]
    assert list(FrameDrafter(trained).predict(frame.iloc[:0]).columns) == list(drafted.columns)


def test_a_column_or_a_row_that_cannot_be_read_is_named(trained, frame, tmp_path: Path) -> None:
    drafter = FrameDrafter(trained)
    with pytest.raises(UserError, match=r"column weight: is no vital .*glucose, systolic"):
        drafter.predict(frame.assign(weight=70))
    with pytest.raises(UserError, match=r"row b: .*glucose.*high"):
        drafter.predict(frame.assign(glucose=["5", "high", ""]))
    with pytest.raises(UserError, match=r"row a: .*nowhere\.png"):
        drafter.predict(frame.assign(image=str(tmp_path / "nowhere.png")))
    with pytest.raises(UserError, match="row a: the image"):
        drafter.predict(frame.assign(image=b"no image"))
    assert vital_columns(frame, trained.spec.schema) == ["glucose", "bp"]


def test_without_mlflow_the_way_out_is_said(adapter: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs it; pip install 'clinical-vlm\[mlflow\]'"):
        save_mlflow_model(adapter, tmp_path / "model")


@needs_mlflow
def test_a_saved_model_drafts_the_same_and_holds_no_pickle(adapter, trained, frame, tmp_path: Path) -> None:
    import mlflow.pyfunc
    import yaml

    save_mlflow_model(adapter, tmp_path / "model")
    files = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert not [name for name in files if Path(name).suffix in (".pkl", ".pickle", ".pt", ".bin", ".joblib")]
    copied = next(path for path in (tmp_path / "model").rglob("vlm.safetensors")).parent
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in adapter.iterdir()
    }
    flavour = yaml.safe_load((tmp_path / "model" / "MLmodel").read_text())["flavors"]["python_function"]
    assert flavour["loader_module"] == "vlm.integrations.mlflow_model" and "python_model" not in flavour
    assert f"clinical-vlm[mlflow]=={__version__}" in (tmp_path / "model" / "requirements.txt").read_text()
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    pd.testing.assert_frame_equal(loaded.predict(frame), wanted_of(trained, frame), check_exact=False, rtol=1e-5)
    (copied / "vlm.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"vlm\.safetensors"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


@needs_mlflow
def test_a_logged_model_is_found_by_its_run(adapter, trained, frame, tmp_path: Path, monkeypatch) -> None:
    import mlflow

    from vlm.integrations.mlflow_model import log_mlflow_model

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    with mlflow.start_run():
        logged = log_mlflow_model(adapter, "ward-7")
    drafted = mlflow.pyfunc.load_model(logged.model_uri).predict(frame)
    assert drafted["draft"].tolist() == wanted_of(trained, frame)["draft"].tolist()
