"""A run on pictures in colour, from the table to the draft, the page and the explanation; and what refuses colours."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import tiny_job
from vlm.adapter import load
from vlm.app.view import picture
from vlm.config import Config
from vlm.config.parsing import to_yaml
from vlm.errors import UserError
from vlm.evaluation.run import evaluate_adapter
from vlm.explanation.explain import explain
from vlm.explanation.result import overlay
from vlm.inference.engine import ReportEngine
from vlm.training.run import build_model, train

VITALS = {"glucose": "7.1", "systolic": "130", "diastolic": "80", "sex": "M"}


@pytest.fixture(scope="module")
def job(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The tiny job, whose pictures are tinted; odd ones are red, even ones blue."""
    folder = tmp_path_factory.mktemp("color")
    (folder / "images").mkdir()
    (folder / "cases.csv").write_text((table_root / "cases.csv").read_text())
    for path in (table_root / "images").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32)
        tint = (0.3, 0.4, 1.0) if int(path.stem) % 2 else (1.0, 0.5, 0.3)  # BGR
        cv2.imwrite(str(folder / "images" / path.name), (grey[..., None] * tint).astype(np.uint8))
    config = tiny_job(tiny_llm, table_root, folder)
    return replace(config, data=replace(config.data, root=str(folder)))


@pytest.fixture(scope="module")
def run(job: Config) -> Path:
    return train(job)


def test_the_run_says_that_it_sees_colors_and_its_adapter_does(run: Path, job: Config) -> None:
    assert "color: rgb" in (run / "config.yaml").read_text(), "the choice, not auto"
    image = json.loads((run / "adapter" / "config.json").read_text())["image"]
    assert image["color"] == "rgb" and len(image["color_mean"]) == len(image["color_std"]) == 3
    assert train(job, resume=True) == run


def test_red_and_blue_are_told_apart(run: Path, job: Config) -> None:
    """Pictures of one luminance and another hue: to a model in grey they are one."""
    engine, folder = ReportEngine(load(run / "adapter")), Path(job.data.root)
    found = []
    for color in ((200, 40, 40), (40, 40, 200)):
        picture = np.tile(np.array(color, np.uint8), (40, 40, 1))
        picture[10:20, 10:20] = 128
        cv2.imwrite(str(folder / "one.png"), picture[..., ::-1])
        found.append(engine.prepare(str(folder / "one.png"), VITALS)[0]["pixel_values"])
    assert (found[0] - found[1]).abs().max() > 0.5


def test_an_explanation_shows_the_colors(run: Path, job: Config) -> None:
    engine = ReportEngine(load(run / "adapter"))
    explanation = explain(engine, str(Path(job.data.root) / "images" / "1.png"), VITALS)
    shown = explanation.pictures[0].pixels
    assert shown.shape == (40, 48, 3) and shown[..., 0].mean() > 2 * shown[..., 2].mean(), "red"
    assert overlay(explanation).shape == (40, 48, 3)


def test_pages_show_the_colors(run: Path) -> None:
    page = (run / "report.html").read_text()
    links = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", page)
    shown = [cv2.imdecode(np.frombuffer(base64.b64decode(link), np.uint8), cv2.IMREAD_COLOR) for link in links]
    assert any(image[..., 0].mean() > 2 * image[..., 2].mean() for image in shown), "blue: the test cases are even"
    red = np.tile(np.array([200, 10, 10], np.uint8), (8, 8, 1))
    link = re.search(r"base64,([A-Za-z0-9+/=]+)", picture(red))[1]
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(link), np.uint8), cv2.IMREAD_COLOR)
    assert decoded[0, 0].tolist() == [10, 10, 200]


def test_grey_may_be_asked_for_and_a_resumed_run_keeps_it(run: Path, job: Config) -> None:
    grey = replace(job, run=replace(job.run, name="grey"), data=replace(job.data, color="grey"))
    folder = train(grey)
    assert load(folder / "adapter").spec.image.color == "grey"
    # A run of an earlier version has no `color` in its config; it saw grey.
    text = re.sub(r"\n  color: grey", "", (folder / "config.yaml").read_text())
    assert "color:" not in text
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^data\.color: was grey when .* began, is rgb; a resumed run keeps it"):
        train(replace(grey, data=replace(grey.data, color="auto")), resume=True)
    assert train(grey, resume=True) == folder


def test_an_encoder_of_one_channel_sees_grey(job: Config, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from vlm.data.ingest.sources import load_cohort

    vision = replace(job.model.vision, channels=1)
    one = replace(job, model=replace(job.model, vision=vision))
    cohort = load_cohort(job.data)
    model = build_model(one, cohort, torch.device("cpu"), torch.float32)
    assert model.spec.image.color == "grey"
    assert "pictures in colour: False (the encoder takes one channel)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^image\.color: must be grey for an encoder of one channel"):
        build_model(replace(one, data=replace(one.data, color="rgb")), cohort, torch.device("cpu"), torch.float32)


def test_an_unlike_setting_at_use_is_refused(run: Path, job: Config, tmp_path: Path) -> None:
    for color, way in (("grey", "refused"), ("rgb", "fits")):
        file = tmp_path / f"{color}.yaml"
        file.write_text(to_yaml(replace(job, data=replace(job.data, color=color))))
        if way == "refused":
            with pytest.raises(UserError, match=r"^data\.color: grey; the adapter sees rgb; leave it at auto$"):
                evaluate_adapter(run / "adapter", file, tmp_path / "test", base=job.model.llm.base)
        else:
            assert evaluate_adapter(run / "adapter", file, tmp_path / "test", base=job.model.llm.base)["cases"]
