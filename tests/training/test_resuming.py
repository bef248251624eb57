"""A run that goes on from a checkpoint ends as an undisturbed one, and an earlier run is never lost to another."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import steady
from tests.training_jobs import trained, with_train
from vlm.config import Config, LossConfig
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.training.checkpoints import TRAINABLE
from vlm.training.loop import TrainingLoop
from vlm.training.run import train
from vlm.training.run_folder import RunFolder, read_log


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["no dropout", "dropout"])
def test_a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(tiny_config: Config, dropout: float) -> None:
    """With dropout before LoRA the steps draw from PyTorch's generator, whose state must come back too."""
    config = with_train(tiny_config, "whole", max_steps=8)
    llm = replace(config.model.llm, lora_dropout=dropout)
    config = replace(config, model=replace(config.model, llm=llm))
    whole = trained(config)
    folder = RunFolder(config)
    log = read_log(folder.log)
    # The same folder as if the process had died after step 6, in the middle of the second epoch.
    assert 1 < next(row["epoch"] for row in log if row["step"] == 6) < 2
    resumed = trained(config, str(folder.checkpoints / "checkpoint-6"))
    for (name, a), b in zip(
        whole.model.trainable_parameters().items(), resumed.model.trainable_parameters().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert steady(read_log(folder.log)) == steady(log)


def test_a_checkpoint_holds_what_trains_and_nothing_of_the_base(tiny_config: Config) -> None:
    trainer = trained(tiny_config)
    saved = load_file(RunFolder(tiny_config).checkpoints / "checkpoint-4" / TRAINABLE)
    assert saved.keys() == trainer.model.trainable_parameters().keys()
    kinds = {path.suffix for path in RunFolder(tiny_config).checkpoints.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json"}, "no pickle"


def test_a_checkpoint_of_another_config_is_refused(tiny_config: Config) -> None:
    trained(tiny_config)
    folder = RunFolder(tiny_config)
    other = replace(tiny_config, model=replace(tiny_config.model, fusion=replace(tiny_config.model.fusion, size=16)))
    with pytest.raises(UserError, match="does not fit; the config changed since this run began"):
        trained(other, str(folder.checkpoints / "checkpoint-4"))
    (folder.checkpoints / "checkpoint-4" / TRAINABLE).write_bytes(b"junk")
    with pytest.raises(UserError, match=r"trainable\.safetensors: damaged: 4 bytes"):
        trained(tiny_config, str(folder.checkpoints / "checkpoint-4"))


def test_the_training_set_knows_its_epoch_after_a_resume_within_it(tiny_config: Config) -> None:
    config = with_train(tiny_config, "epochs", max_steps=8)
    trained(config)
    trainer = trained(config, str(RunFolder(config).checkpoints / "checkpoint-6"))
    assert trainer.training.epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, train=replace(c.train, seed=9)), "train.seed: was 0"),
        (lambda c: replace(c, loss=LossConfig(alpha=0.9)), "loss.alpha: was 0.4"),
        (lambda c: replace(c, data=replace(c.data, withhold=["image"])), "data.withhold: was"),
        (lambda c: replace(c, train=replace(c.train, max_steps=5)), None),
    ],
    ids=["seed", "alpha", "withhold", "more steps"],
)
def test_a_resumed_run_keeps_what_it_has_learned_from(tiny_config: Config, change, message: str | None) -> None:
    trained(tiny_config)
    folder, cases = RunFolder(tiny_config), load_cohort(tiny_config.data).fingerprint
    if message is None:
        assert folder.check(change(tiny_config), cases, resume=True) == folder.checkpoints / "checkpoint-4"
    else:
        with pytest.raises(UserError, match=message):
            folder.check(change(tiny_config), cases, resume=True)
    with pytest.raises(UserError, match="the cases or their split changed"):
        folder.check(tiny_config, "other", resume=True)
    (folder.checkpoints / "checkpoint-4" / "trainer_state.json").unlink()  # as if the process died while writing it
    assert folder.check(tiny_config, cases, resume=True) == folder.checkpoints / "checkpoint-2"


def test_an_earlier_run_is_never_overwritten_unasked(tiny_config: Config) -> None:
    folder = RunFolder(tiny_config)
    folder.path.mkdir(parents=True)
    (folder.path / "result.txt").write_text("weeks of work")
    with pytest.raises(UserError, match="holds an earlier run; go on with --resume"):
        train(tiny_config)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        train(tiny_config, resume=True)
    with pytest.raises(UserError, match="it is no run; it is not overwritten"):
        train(replace(tiny_config, run=replace(tiny_config.run, overwrite=True)))
    assert (folder.path / "result.txt").exists()


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("data", "root"), "/no/such/folder", "no such folder"),
        (("model", "llm", "base"), "/no/such/base", "does not exist"),
        (("model", "vision", "name"), "no_such_cnn", "timm has no model"),
        (("model", "llm", "lora_targets"), ["nothing"], "model.llm.lora_targets"),
        (("train", "patience"), 2, "no case is left for validation"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_mistake_leaves_the_earlier_run_as_it_was(tiny_config: Config, keys, value, message: str) -> None:
    folder = RunFolder(tiny_config)
    folder.create(tiny_config, "earlier")
    (folder.adapter).mkdir()
    (folder.adapter / "weights").write_text("weeks of work")
    config = replace(tiny_config, run=replace(tiny_config.run, overwrite=True))
    if keys[-1] == "patience":
        table = replace(config.data.table, split=None)
        split = replace(config.data.split, validation=0.0, test=0.2)
        config = replace(config, data=replace(config.data, table=table, split=split))

    def changed(node, names):
        inner = value if len(names) == 1 else changed(getattr(node, names[0]), names[1:])
        return replace(node, **{names[0]: inner})

    with pytest.raises(UserError, match=message):
        train(changed(config, keys))
    assert (folder.adapter / "weights").read_text() == "weeks of work"


@pytest.mark.slow
def test_resuming_a_finished_run_trains_no_further(tiny_config: Config) -> None:
    from vlm.training.run import train

    folder = RunFolder(tiny_config)
    train(tiny_config)
    rows, weights = folder.log.read_text(), (folder.adapter / "vlm.safetensors").read_bytes()
    train(tiny_config, resume=True)
    assert folder.log.read_text() == rows
    assert (folder.adapter / "vlm.safetensors").read_bytes() == weights

    longer = replace(tiny_config, train=replace(tiny_config.train, max_steps=tiny_config.train.max_steps + 2))
    train(longer, resume=True)
    assert len(folder.log.read_text()) > len(rows), "more steps were asked for, and they are made"


@pytest.mark.slow
def test_a_finished_run_that_is_made_longer_learns_from_its_first_step_on(tiny_config: Config, monkeypatch) -> None:
    seen: list[float] = []
    step = TrainingLoop.step

    def noted(self: TrainingLoop, batches: list) -> tuple:
        seen.append(self.optimizer.param_groups[0]["lr"])
        return step(self, batches)

    whole = trained(with_train(tiny_config, "longer", schedule="linear", max_steps=4))
    assert whole.optimizer.param_groups[0]["lr"] == 0
    monkeypatch.setattr(TrainingLoop, "step", noted)
    longer = with_train(tiny_config, "longer", schedule="linear", max_steps=8)
    trained(longer, str(RunFolder(longer).checkpoints / "checkpoint-4"))
    assert len(seen) == 4 and seen == sorted(seen, reverse=True) and seen[-1] > 0


def test_a_run_of_an_earlier_version_goes_on_where_a_new_option_has_its_default(tiny_config: Config) -> None:
    trained(tiny_config)
    folder, cases = RunFolder(tiny_config), load_cohort(tiny_config.data).fingerprint
    text = folder.config.read_text()
    assert "  interleave_shards: 8\n" in text
    folder.config.write_text(text.replace("  interleave_shards: 8\n", ""))
    assert folder.check(tiny_config, cases, resume=True) == folder.checkpoints / "checkpoint-4"
    old = text.replace("interleave_shards:", "lanes:").replace("dequantize:", "unpack:").replace("injection:", "shown:")
    folder.config.write_text(old)
    assert folder.check(tiny_config, cases, resume=True) == folder.checkpoints / "checkpoint-4", "under its old names"
    other = replace(tiny_config, data=replace(tiny_config.data, interleave_shards=4))
    with pytest.raises(UserError, match=r"data\.interleave_shards: was 8 when .* began, is 4"):
        folder.check(other, cases, resume=True)
