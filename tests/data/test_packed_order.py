"""The order of an epoch over shards, and training on them: the same cases, each shard fetched once."""

import math
from collections import Counter
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cells import first_images
from tests.conftest import read_json
from tests.examples import same
from tests.packs import folder, loose, nothing_cached, packed
from tests.training_jobs import trained, with_train
from vlm.config import Config, DataConfig, DropoutConfig, SectionConfig
from vlm.data.case import CaseSpec
from vlm.data.cohort import features
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed import shards
from vlm.data.packed.shards import ShardCache, image_reference
from vlm.data.sampling import ShardSampler, shards_of
from vlm.data.storage import write_rows
from vlm.data.study import image_cell
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics
from vlm.training.run import train
from vlm.training.run_folder import RunFolder, read_log

__all__ = ["folder", "loose", "nothing_cached"]  # fixtures


# --------------------------------------------------------------------------------------------- order


def cases(sizes: list[int], streams: int, without: int = 7, weights: np.ndarray | None = None) -> CaseDataset:
    """Rows of shards of these sizes, with reports of many lengths; some have no image."""
    parts, numbers = [], iter(range(sum(sizes)))
    for shard, size in enumerate(sizes):
        own = list(islice(numbers, size))
        ids, nothing = [f"c{row}" for row in own], [""] * size
        cells = [[image_cell(image_reference(f"s3://x/{shard}", place))] if row % without != without - 1 else []
                 for place, row in enumerate(own)]  # fmt: skip
        parts.append({
            "id": ids, "patient": ids, "split": ["train"] * size, "images": cells,
            "vitals": [[]] * size, "labels": [[]] * size, "sections": [["x" * (row * row % 53)] for row in own],
            "context": nothing, "prior_report": nothing, "probability": [None] * size, "source": nothing,
            "weight": [1.0] * size if weights is None else weights[own],
        })  # fmt: skip
    rows = write_rows(parts, features(0, 0, 1))
    spec = CaseSpec(ImageSpec(32), VitalsSchema(()), VitalsStatistics((), (), ()), ())
    section = [SectionConfig("report")]
    return CaseDataset(rows, spec, section, dropout=DropoutConfig(), interleave_shards=streams, seed=3)


def sampler_of(dataset: CaseDataset, batch: int, micro: int = 1, processes: int = 1) -> ShardSampler:
    shard_numbers = shards_of(dataset)
    assert shard_numbers is not None
    return ShardSampler(dataset, shard_numbers, batch, micro, processes)


def of_processes(dataset: CaseDataset, batch: int, micro: int, processes: int) -> list[list[list[int]]]:
    """What accelerate gives to each process: its micro batches, in turn."""
    batches = torch.utils.data.BatchSampler(sampler_of(dataset, batch, micro, processes), micro, drop_last=False)
    return [list(BatchSamplerShard(batches, processes, index, even_batches=False)) for index in range(processes)]


def step_of(given: list[list[list[int]]], number: int, each: int) -> list[int]:
    """The cases of one optimizer step, of all processes; each of them makes so many micro batches of it."""
    return sorted(chain(*(chain(*micros[number * each : (number + 1) * each]) for micros in given)))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.sampled_from([8, 16, 24]),
    st.integers(0, 3),
)
def test_every_case_once_and_the_same_steps_for_any_number_of_processes(sizes, streams, batch, epoch) -> None:
    dataset = cases(sizes, streams)
    dataset.set_epoch(epoch)
    alone = list(sampler_of(dataset, batch))
    assert sorted(alone) == list(range(sum(sizes))) and len(sampler_of(dataset, batch)) == len(alone)
    for processes in (1, 2, 4, 8):
        share = batch // processes
        for micro in {1, math.gcd(share, 4), share}:
            given = of_processes(dataset, batch, micro, processes)
            assert sorted(chain(*chain(*given))) == sorted(alone)
            for number in range(len(alone) // batch):
                step = sorted(alone[number * batch : (number + 1) * batch])
                assert step_of(given, number, share // micro) == step
    assert list(sampler_of(dataset, batch)) == alone
    dataset.set_epoch(epoch + 1)
    assert len(alone) < 3 * batch or list(sampler_of(dataset, batch)) != alone


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_shards_are_assigned_to_processes_without_overlap(processes: int, micro: int) -> None:
    """Wholly where the streams come out even, as with shards of one size; else all but one or two shards of each."""
    even, uneven = cases([20] * 32, streams=8, without=1000), cases([20, 7, 33, 12] * 9, streams=8)
    for dataset, most in ((even, 0), (uneven, 2 * 8)):
        own = shards_of(dataset)
        for epoch in range(4):
            dataset.set_epoch(epoch)
            given = of_processes(dataset, 32, micro, processes)
            seen = Counter(shard for micros in given for shard in {int(own[row]) for m in micros for row in m})
            assert len(seen) == len(set(own)) and sum(count - 1 for count in seen.values()) <= most


def test_rows_without_an_image_go_with_their_neighbours_and_files_are_in_no_shard(loose: DataConfig) -> None:
    assert shards_of(cases([3, 4, 5], 2, without=4)).tolist() == [0] * 4 + [1] * 4 + [2] * 4  # 3, 7 have none
    assert shards_of(training_cases(loose)) is None


def test_weighted_cases_are_drawn_by_weight_and_still_shard_by_shard() -> None:
    dataset = cases([20] * 16, 4, weights=np.repeat([1.0, 3.0], 160))
    own = shards_of(dataset)
    drawn: Counter[int] = Counter()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        order = list(sampler_of(dataset, 8))
        assert len(order) == 320 and len(set(order)) < 320, "with replacement"
        streams = np.array(order[:160]).reshape(-1, 4, 2).swapaxes(0, 1).reshape(4, -1)  # of half an epoch
        changes = [(np.diff(own[stream]) != 0).sum() for stream in streams]  # 3 where a step sorts two shards by length
        shards = [len(set(own[stream])) for stream in streams]
        assert all(c <= 3 * (count - 1) for c, count in zip(changes, shards, strict=True)), "shard by shard"
        drawn.update(order)
    heavy = sum(count for row, count in drawn.items() if row >= 160) / drawn.total()
    assert abs(heavy - 0.75) < 0.02


# ------------------------------------------------------------------------------------------- training


def training_cases(data: DataConfig, rows: list[int] | None = None) -> CaseDataset:
    cohort = load_cohort(data)
    of_split = cohort.split("train") if rows is None else cohort.split("train").select(rows)
    spec, dropout = CaseSpec.fit(cohort, ImageSpec(32), 3), DropoutConfig(0.2, 0.2, 0.2)
    return CaseDataset(of_split, spec, cohort.sections, dropout=dropout, interleave_shards=data.interleave_shards)


def test_an_epoch_opens_each_shard_once(folder: Path, monkeypatch, nothing_cached: ShardCache) -> None:
    opened = Counter()
    fetch = shards._fetch
    monkeypatch.setattr(shards, "_fetch", lambda address: opened.update([address]) or fetch(address))
    dataset = training_cases(packed(folder, interleave_shards=4))
    for epoch in range(3):
        dataset.set_epoch(epoch)
        opened.clear()
        for index in sampler_of(dataset, 8):
            dataset[index]
        assert len(opened) == 12 and set(opened.values()) == {1}
        assert not nothing_cached._shards, "what was read through is let go"
    for processes in (2, 4):
        for micros in of_processes(dataset, 8, 2, processes):
            opened.clear()
            monkeypatch.setattr(shards, "_cached", ShardCache())  # each process has its own
            for index in chain(*micros):
                dataset[index]
            assert set(opened.values()) == {1}


def test_few_shards_are_cached_at_once(folder: Path) -> None:
    dataset = training_cases(packed(folder))
    cells = [cell["path"] for cell in first_images(dataset.rows) if cell]
    sizes = [path.stat().st_size for path in folder.glob("train*")]
    held = ShardCache(most=3 * max(sizes))
    for path in np.random.default_rng(0).permutation(cells):
        row, _, address = path.removeprefix("row://").partition("::")
        assert held.image(address, int(row))[:4] == b"\x89PNG"
        assert sum(shard.images.nbytes for shard in held._shards.values()) <= held.most
    assert 2 <= len(held._shards) <= 4


def test_the_batches_are_those_of_the_files_bit_for_bit(loose: DataConfig, folder: Path) -> None:
    shards_first = training_cases(packed(folder))
    place = {name: number for number, name in enumerate(load_cohort(loose).split("train")["id"])}
    files = training_cases(loose, [place[name] for name in shards_first.rows["id"]])
    order = list(sampler_of(shards_first, 8))
    for epoch in range(2):
        shards_first.set_epoch(epoch), files.set_epoch(epoch)
        for index in order:
            a, b = shards_first[index], files[index]
            assert same(a, b), index


@pytest.fixture
def job(tiny_config: Config, folder: Path) -> Config:
    """A tiny run on the packed cohort: 72 training cases, a step of 8 in two parts."""
    config = with_train(
        tiny_config, "whole", batch_size=8, micro_batch_size=4, eval_steps=3, max_steps=14, keep_checkpoints=9
    )
    return replace(config, data=packed(folder, interleave_shards=4, dropout=DropoutConfig(0.2, 0.2, 0.1)))


@pytest.mark.slow
def test_a_run_resumed_within_an_epoch_ends_the_same_and_reads_no_image_of_the_steps_it_passes_over(
    job: Config, monkeypatch, capsys
) -> None:
    read: list[str] = []
    image = ShardCache.image
    monkeypatch.setattr(ShardCache, "image", lambda self, a, row, place=0: read.append(a) or image(self, a, row, place))
    whole = trained(job)
    why = "the most that divide data.interleave_shards 4 and train.batch_size 8"
    assert f"packed: 12 shards, 4 interleaved ({why})" in capsys.readouterr().err
    assert 0 < next(row["epoch"] for row in read_log(RunFolder(job).log) if row["step"] == 6) < 1, "in mid-epoch"
    first = sum("train-" in address for address in read)
    read.clear()
    resumed = trained(job, str(RunFolder(job).checkpoints / "checkpoint-6"))
    for (name, a), b in zip(
        whole.model.trainable_parameters().items(), resumed.model.trainable_parameters().values(), strict=True
    ):
        assert torch.equal(a, b), name
    dataset = whole.training
    dataset.set_epoch(0)
    passed_over = list(sampler_of(dataset, 8, 4))[: 6 * 8]
    with_image = sum(dataset.rows[index]["images"] != [] for index in passed_over)
    assert first - sum("train-" in address for address in read) == with_image > 30


@pytest.mark.slow
def test_a_whole_run_on_shards_tests_itself_as_on_files(job: Config) -> None:
    evaluation = replace(job.evaluation, batch_size=32, ablation=False)
    train(replace(job, train=replace(job.train, max_steps=2), evaluation=evaluation))
    metrics = read_json(RunFolder(job).metrics)
    assert metrics["facts"]["as_given"]["image_facts_right"]["value"] is not None
    assert metrics["cases"] == len(load_cohort(job.data).split("test"))
