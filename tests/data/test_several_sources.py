"""Several sources as one cohort: labels, units, categories and sections that differ, and weights."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import layouts
from tests.cells import rows_of
from vlm.config import DataConfig, SectionConfig, SourceConfig, SplitConfig, TableConfig, VitalConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError


@pytest.fixture
def joined(tmp_path: Path) -> DataConfig:
    folder = TableConfig(patient="who", labels=["edema"], vitals=["glucose"], report=[SectionConfig("text")])
    sources = [
        SourceConfig("chexpert", str(layouts.chexpert(tmp_path / "c")), weight=3.0, labels={"Edema": "edema"},
                     table=TableConfig(labels=["Edema", "Fracture"])),
        SourceConfig("image_folder", str(layouts.image_folder(tmp_path / "f")), name="ward", table=folder),
    ]  # fmt: skip
    return DataConfig(sources=sources, split=SplitConfig(0.0, 0.0))


def test_what_a_source_does_not_have_is_unknown(joined: DataConfig) -> None:
    cohort = load_cohort(joined)
    rows = rows_of(cohort)
    ours = rows["ward/train/3.png"]
    assert cohort.labels == ("edema", "Fracture") and cohort.schema.names == ("age", "sex", "glucose")
    assert ours["labels"] == {"edema": 1, "Fracture": None} and ours["vitals"] == {
        "age": None,
        "sex": None,
        "glucose": 8,
    }
    theirs = rows["chexpert/train/patient00000/study1/view1_frontal.jpg"]
    assert theirs["labels"] == {"edema": 1, "Fracture": 0} and theirs["sections"] == [None]
    assert theirs["patient"] == "chexpert/patient00000" and theirs["weight"] == 3
    assert "\n  chexpert: train 11 (11 patients), validation 0 (0 patients), test 3" in cohort.describe()
    assert ours["source"] == "ward" and theirs["source"] == "chexpert"


def test_vitals_in_two_units_become_one(joined: DataConfig) -> None:
    ward = joined.sources[1]
    other = replace(ward, name="other", table=replace(ward.table, vitals=[VitalConfig("glucose", "mg/dL")]))
    own = rows_of(load_cohort(replace(joined, sources=[ward])))["ward/train/3.png"]["vitals"]["glucose"]
    both = load_cohort(replace(joined, sources=[ward, other]))
    assert both.schema.vitals[0].unit == "mmol/L" and rows_of(both)["ward/train/3.png"]["vitals"]["glucose"] == own == 8
    assert rows_of(both)["other/train/3.png"]["vitals"]["glucose"] == pytest.approx(8 / 18.016, abs=2e-3)
    turned = load_cohort(replace(joined, sources=[other, ward]))
    assert turned.schema.vitals[0].unit == "mg/dL"
    assert rows_of(turned)["ward/train/3.png"]["vitals"]["glucose"] == pytest.approx(8 * 18.016, rel=2e-3)
    assert any("glucose: the reference range of other, none mg/dL, is taken for ward too" in w for w in turned.warnings)


def test_categories_in_two_orders_become_one(tmp_path: Path) -> None:
    sources = []
    for name, words in (("a", ["no", "yes"]), ("b", ["yes", "no"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cases.csv").write_text("id,smoker\n1,yes\n2,no\n3,\n")
        table = TableConfig(id="id", image=None, vitals=[VitalConfig("smoker", categories=words)])
        sources.append(SourceConfig("table", str(tmp_path / name), name=name, table=table))
    rows = rows_of(load_cohort(DataConfig(sources=sources)))
    assert [rows[f"{s}/{i}"]["vitals"]["smoker"] for s in "ab" for i in (1, 2, 3)] == [1, 0, None] * 2


def test_every_source_keeps_the_needs_of_its_sections(tmp_path: Path) -> None:
    """A text that one source writes from the image must not be taught where there is none, whatever another says."""
    sources = []
    for name, section in (("a", SectionConfig("text", ["image"], "No image.")), ("b", SectionConfig("text", []))):
        (tmp_path / name).mkdir()
        layouts.picture(tmp_path / name / "1.png")
        (tmp_path / name / "cases.csv").write_text("id,image,text,more\n1,1.png,Clear.,x\n2,,Opacity.,y\n")
        table = TableConfig(id="id", report=[section, SectionConfig("more", [])])
        sources.append(SourceConfig("table", str(tmp_path / name), name=name, table=table))
    sources.append(replace(sources[1], name="c"))
    cohort = load_cohort(DataConfig(sources=sources, split=SplitConfig(0.0, 0.0)))
    dataset = CaseDataset(cohort.dataset, CaseSpec.fit(cohort, ImageSpec(32), 3), cohort.sections)
    reports = dict(zip(cohort.dataset["id"], dataset.reports, strict=True))
    assert reports == {"a/1": "Clear. x", "a/2": "No image. y", "b/1": "Clear. x", "b/2": "Opacity. y",
                       "c/1": "Clear. x", "c/2": "Opacity. y"}  # fmt: skip
    assert len(cohort.sections) == 4, "b and c agree and share theirs"


def test_weights_change_how_often_a_case_is_drawn_and_nothing_else(joined: DataConfig, tiny_model) -> None:
    from vlm.config import DropoutConfig
    from vlm.data.sampling import CaseSampler

    cohort = load_cohort(joined)
    rows = cohort.split("train")
    training = CaseDataset(rows, tiny_model.spec, cohort.sections, dropout=DropoutConfig())
    assert CaseDataset(rows, tiny_model.spec, cohort.sections).weights is None, "a test is never reweighted"
    sampler = CaseSampler(training, 4)
    heavy = np.array([name.startswith("chexpert") for name in rows["id"]])
    drawn = []
    for epoch in range(400):
        training.set_epoch(epoch)
        drawn += list(sampler)
    expected = 3 * heavy.sum() / (3 * heavy.sum() + (~heavy).sum())
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    assert abs(heavy[drawn].mean() - expected) < 4 * error
    training.set_epoch(7)
    assert list(sampler) == list(sampler) == drawn[7 * len(rows) : 8 * len(rows)], "by seed and epoch alone"


def test_a_resumed_run_on_weighted_sources_ends_bit_for_bit(tiny_config, joined: DataConfig) -> None:
    import torch

    from tests.training_jobs import trained
    from vlm.training.run_folder import RunFolder

    data = replace(tiny_config.data, sources=joined.sources, split=SplitConfig(0.2, 0.1))
    config = replace(tiny_config, data=data)
    whole = trained(config)
    moved = [replace(source, root=shutil.move(source.root, f"{source.root}-moved")) for source in joined.sources]
    config = replace(config, data=replace(data, sources=moved))
    folder = RunFolder(config)
    assert folder.check(config, folder.cases.read_text().strip(), resume=True), "folders may move"
    resumed = trained(config, str(sorted(RunFolder(config).checkpoints.glob("checkpoint-*"))[0]))
    for (name, a), b in zip(whole.model.trainable_parameters().items(), resumed.model.trainable_parameters().values(),
                            strict=True):  # fmt: skip
        assert torch.equal(a, b), name


DROPS = TableConfig(patient="who", labels=["edema"], vitals=[VitalConfig("glucose", "drops")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: [a, replace(b, name="chexpert")], "two are called chexpert"),
        (lambda a, b: [replace(a, labels={"Oedema": "edema"}), b], "chexpert: labels: Oedema is none of its"),
        (lambda a, b: [replace(a, labels={"Edema": "Fracture"}), b], "two of its labels get one name"),
        (lambda a, b: [b, replace(b, name="other", table=DROPS)], "glucose is mmol/L in ward and drops in other"),
        (lambda a, b: [a, replace(b, name="ward/1")], "ward/1: a name has no slash"),
    ],
)
def test_sources_that_do_not_fit_are_named(change: Callable, message: str, joined: DataConfig) -> None:
    with pytest.raises(UserError, match=message):
        load_cohort(replace(joined, sources=change(*joined.sources)))
