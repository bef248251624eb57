"""Real laboratory values over time, and those of the page on studies, as the tables that hold them."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.vitals_over_time import CRP, LDH, rows_of
from vlm.config import (
    Config,
    DataConfig,
    DropoutConfig,
    SectionConfig,
    SeriesColumnConfig,
    SplitConfig,
    TableConfig,
    VitalConfig,
)
from vlm.config.parsing import parse_config
from vlm.data.ingest.sources import load_cohort


@pytest.fixture(scope="module")
def hannover() -> Path:
    """The radiographs with laboratory values where they are at hand."""
    project, name = Path(__file__).resolve().parents[2], "hannover-covid-cxr"
    for place in (Path(os.environ.get("HANNOVER_CXR_ROOT", "/nonexistent")), project / "data" / name,
                  project.parent / "shared" / "data" / name):  # fmt: skip
        if (place / "cases.csv").is_file():
            return place
    pytest.skip(f"the {name} is not at hand; set HANNOVER_CXR_ROOT to its folder")


def hannover_config(root: Path) -> DataConfig:
    """Its offsets count from the radiograph, so those of a patient's radiographs meet at the admission."""
    names = ("crp", "ldh", "lymphocytes")
    table = TableConfig(
        images="images", image="file", id="file", patient="patient", origin="admission_offset", time_unit="d",
        series_of="patient", vitals=[CRP, LDH, VitalConfig("lymphocytes", "10^9/L", over_time=True), "sex"],
        series=[SeriesColumnConfig(name, f"{name}_val", f"{name}_offset") for name in names],
        report=[SectionConfig("report", ["crp_change"], "CRP: one value.")], context=None,
    )  # fmt: skip
    return DataConfig(source="table", root=str(root), image_size=32, table=table, split=SplitConfig(0.2, 0.2))


@pytest.fixture(scope="module")
def prepared(hannover: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """The collection, with a sentence on each CRP for a target, since it has no reports."""
    folder = tmp_path_factory.mktemp("hannover")
    frame = pd.read_csv(hannover / "cases.csv")
    frame["report"] = ["CRP rising." if value > 50 else "CRP falling." for value in frame["crp_val"].fillna(0)]
    frame.to_csv(folder / "cases.csv", index=False)
    (folder / "images").symlink_to(hannover / "images")
    return hannover_config(folder)


def test_earlier_radiographs_give_the_earlier_values(prepared: DataConfig) -> None:
    frame = pd.read_csv(Path(prepared.root) / "cases.csv").set_index("file")
    cohort = load_cohort(prepared)
    rows = rows_of(cohort)
    assert sum("crp_change" in row for row in rows.values()) > 70
    for file, row in frame.iterrows():
        own = frame[frame["patient"] == row["patient"]].dropna(subset=["crp_val", "crp_offset"])
        days = own["crp_offset"] - own["admission_offset"] + row["admission_offset"]  # from this radiograph
        past = own["crp_val"][days <= 0].groupby(days[days <= 0]).mean()
        said = rows[str(file)]
        assert said.get("crp_count", 0) == len(past)
        if len(past):
            assert said["crp_hours_since"] == -24 * past.index[-1]
        if len(past) > 1:
            assert said["crp_change"] == pytest.approx(past.iloc[-1] - past.iloc[0], abs=1e-3)


@pytest.mark.slow
def test_real_studies_with_priors_and_values_over_time_train_and_draft(
    prepared: DataConfig, tiny_config: Config
) -> None:
    from vlm import ClinicalVLM, StudyImage
    from vlm.training.run import train

    studies = replace(prepared.table, view="projection", priors=1)
    config = replace(
        tiny_config,
        data=replace(prepared, table=studies, dropout=DropoutConfig(0.1, 0.1, 0.3, prior=0.3)),
        train=replace(tiny_config.train, max_steps=2, threads=1),
        evaluation=replace(tiny_config.evaluation, ablation=False),
    )
    train(config)
    model = ClinicalVLM.from_pretrained(Path(config.run.folder) / "tiny" / "adapter")
    now, before = map(str, list(Path(prepared.root, "images").iterdir())[:2])
    image = [StudyImage(now, "AP"), StudyImage(before, "AP", prior=True, days=3)]
    report = model.predict(image, {"crp": [["-3 d", 111], ["-1 d", 150], [0, 20]], "sex": "F"}, max_new_tokens=8)
    assert report.vitals["crp_change"] == -91 and report.vitals["crp_count"] == 3
    assert [(one.view, one.prior, one.days) for one in report.images] == [("AP", False, None), ("AP", True, 3)]
    assert "not given: ldh, lymphocytes" in report.warnings
    assert model.spec.study.expected == ("AP", "prior"), "PA in place of AP is no lack"
    for view in ("AP", "PA"):
        plain = model.predict([StudyImage(now, view)], {"crp": 20}, max_new_tokens=8)
        assert "not given: prior" in plain.warnings
    assert any(line == "one value alone, so no change over time: crp" for line in plain.warnings)
    assert plain.text != "" and "crp_change" not in plain.vitals


def test_the_config_of_the_page_on_studies_reads(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    told = next(block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "over_time" in block)
    (tmp_path / "c.yaml").write_text(told)
    (tmp_path / "cases.csv").write_text(
        "id,patient,taken,glucose_now,glucose_time,glucose_before,crp_trend,image\n"
        "a,p,2026-03-02T12:00Z,11.2,2026-03-02T10:00Z,9.1,CRP is rising.,\n"
    )
    (tmp_path / "labs.csv").write_text(
        "patient,test,result,unit,drawn\np,CRP,12,mg/L,2026-03-01T12:00Z\np,CRP,3,mg/dL,2026-03-02T12:00Z\n"
    )
    config = parse_config(["--config", str(tmp_path / "c.yaml"), "--data.root", str(tmp_path)])[0]
    said = rows_of(load_cohort(config.data))["a"]
    assert said["crp_change"] == 18 and said["glucose_change"] == pytest.approx(2.1)
    assert said["glucose_slope"] == pytest.approx(2.1 * 24 / 22, abs=1e-3)
