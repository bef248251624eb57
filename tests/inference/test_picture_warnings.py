"""What a draft says of a picture unlike those of training, however the picture is given."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import public
from tests.data.test_square import radiograph, skin
from tests.dicom_files import write
from vlm import ClinicalVLM, StudyImage
from vlm.adapter import save
from vlm.adapter.layout import read_config
from vlm.app.service import Service
from vlm.config import Config
from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import ImageFolder
from vlm.data.images.square import Square
from vlm.data.ingest.sources import load_cohort
from vlm.data.study import StudySpec
from vlm.inference import many
from vlm.inference.command import draft_case
from vlm.inference.engine import ReportEngine
from vlm.inference.rows import Row
from vlm.inference.study_images import read_study
from vlm.training.run import build_model

UNIFORM = "the picture is almost uniform, as a blank scan or an empty page is"
COLORED = "the picture is in colour; the adapter was trained in grey"
MODALITY = "the picture's modality is {}; the adapter was trained on CR, DX"


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


@pytest.fixture
def radiologist(
    tiny_config: Config, table_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> ClinicalVLM:
    """A fresh model for radiographs in DICOM, half of them CR, half of them DX."""
    (tmp_path / "images").mkdir()
    (tmp_path / "cases.csv").write_text((table_root / "cases.csv").read_text())
    for path in (table_root / "images").iterdir():  # under the names in the table: a file is known by its bytes
        write(tmp_path / "images" / path.name, radiograph(40), 8, Modality=("CR", "DX")[int(path.stem) % 2])
    data = replace(tiny_config.data, root=str(tmp_path))
    model = build_model(replace(tiny_config, data=data), load_cohort(data), torch.device("cpu"), torch.float32)
    assert "modalities: CR, DX (named in the DICOM headers of " in capsys.readouterr().err
    return public(model)


def test_another_modality_is_told_by_every_way_in(radiologist: ClinicalVLM, tmp_path: Path) -> None:
    engine = ReportEngine(radiologist)
    for number, (code, told) in enumerate((("CT", True), ("mr", True), ("DX", False), ("", False), ("C\x1bT", False))):
        file = write(tmp_path / f"{number}.dcm", radiograph(40), 8, Modality=code)
        with Service(engine) as service:
            uploaded = service.read_bytes(file.read_bytes())
        pq.write_table(pa.table({"image": [file.read_bytes()]}), tmp_path / "t.parquet")
        embedded = EmbeddedImage(str(tmp_path / "t.parquet"), "image", 0, file.stat().st_size)
        rows = [many._prepare(engine, Row(2, "a", (source,), (), {}, ""), ImageFolder(tmp_path))
                for source in (file.name, embedded)]  # fmt: skip
        said = [engine.prepare(given, None)[1] for given in (file, [StudyImage(file)], uploaded)]
        for warnings in [*said, *(case.warnings for case in rows)]:
            assert (MODALITY.format(code.upper()) in warnings) is told
            assert any("modality" in text for text in warnings) is told and "\x1b" not in "".join(warnings)


def test_the_adapter_keeps_the_modalities_and_its_drafts_warn(radiologist: ClinicalVLM, tmp_path: Path) -> None:
    folder = str(save(radiologist, tmp_path / "adapter"))
    (tmp_path / "export").mkdir()
    write(tmp_path / "export" / "a", Modality="XR")
    report = draft_case(folder, [StudyImage(str(tmp_path / "export"))], "", 2, None)
    assert MODALITY.format("XR") in report.warnings, "a folder of DICOM files"
    config = tmp_path / "adapter" / "config.json"
    values = json.loads(config.read_text())
    assert values.pop("modalities") == ["CR", "DX"] and read_config(config.parent).spec.modalities == ("CR", "DX")
    config.write_text(json.dumps(values))
    earlier = read_config(config.parent).spec
    assert earlier.modalities == () and read_study(Square(radiograph(32), modality="CT"), earlier, print)[1] == []


def test_the_modalities_of_a_study_are_told_together(radiologist: ClinicalVLM) -> None:
    spec = replace(radiologist.spec, modalities=("CR",), study=StudySpec(5))
    codes = ("MR", "CR", "CT", "CT", "")
    squares = [StudyImage(Square(radiograph(32) + number, modality=code)) for number, code in enumerate(codes)]
    said = "the modality of 3 of the 5 pictures is CT, MR; the adapter was trained on CR"
    assert [text for text in read_study(squares, spec, print)[1] if "modality" in text] == [said]
