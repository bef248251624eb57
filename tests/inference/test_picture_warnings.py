"""What a draft says of a picture unlike those of training, however the picture is given."""

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_square import radiograph, skin
from vlm import ClinicalVLM, StudyImage
from vlm.app.service import Service
from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import ImageFolder
from vlm.inference import many
from vlm.inference.engine import ReportEngine
from vlm.inference.rows import Row

UNIFORM = "the picture is almost uniform, as a blank scan or an empty page is"
COLORED = "the picture is in colour; the adapter was trained in grey"


@pytest.fixture
def engine(tiny_model: ClinicalVLM) -> ReportEngine:
    return ReportEngine(tiny_model)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A coloured picture and a grey one, the latter as a JPEG of three channels."""
    cv2.imwrite(str(tmp_path / "skin.png"), skin()[..., ::-1])
    cv2.imwrite(str(tmp_path / "chest.jpg"), np.dstack([radiograph()] * 3))
    return {"skin": tmp_path / "skin.png", "chest": tmp_path / "chest.jpg"}


def test_a_picture_in_colour_is_told_by_every_way_in(engine: ReportEngine, files: dict[str, Path]) -> None:
    side = engine.model.spec.image.size
    for name, told in (("skin", True), ("chest", False)):
        array = skin(side) if told else radiograph(side)
        with Service(engine) as service:
            uploaded = service.read_bytes(files[name].read_bytes())
        for given in (files[name], str(files[name]), [StudyImage(files[name])], array, uploaded):
            assert (COLORED in engine.prepare(given, None)[1]) is told, (name, type(given))
        table = files[name].with_suffix(".parquet")
        pq.write_table(pa.table({"image": [files[name].read_bytes()]}), table)
        for source in (files[name].name, EmbeddedImage(str(table), "image", 0, files[name].stat().st_size)):
            case = many._prepare(engine, Row(2, "a", (source,), (), {}, ""), ImageFolder(table.parent))
            assert (COLORED in case.warnings) is told and not case.error, source
    report = engine.predict([(files["skin"], None)], max_new_tokens=2)[0]
    assert COLORED in report.to_dict()["warnings"] and f"warning: {COLORED}" in str(report)


def test_an_almost_uniform_picture_is_told(engine: ReportEngine, tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).normal(200, 3, (300, 400)).astype(np.uint8)
    pictures = {"noisy": (noisy, True), "one value": (noisy * 0 + 9, False), "chest": (radiograph(), False)}
    for name, (pixels, warned) in pictures.items():
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        warnings = engine.prepare(tmp_path / "a.png", None)[1]
        assert (UNIFORM in warnings) is warned, name
        assert ("the image is blank and was taken as none" in warnings) is (name == "one value")
