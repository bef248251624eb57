"""Adapters and configs that would cost time, memory or a visit elsewhere: each ends in one line, within bounds."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tests.hub_server import hub  # noqa: F401
from tests.untrusted_adapters import (  # noqa: F401
    LORA,
    REST,
    Spoil,
    config,
    folder,
    lora,
    manifest,
    part,
    refusal,
    saved,
    text,
    trained,
    vital,
    watched,
)
from vlm.adapter import bounds, load, read_config, resolve, save
from vlm.adapter import hub as hub_room
from vlm.adapter import validate as reading
from vlm.atomic import write_manifest
from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.distributed import log_rank0
from vlm.errors import UserError, run_program
from vlm.report import Report

LEVELS = ["&a0 [x,x,x,x,x,x,x,x,x]"] + [f"&a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
BOMB = f"[{', '.join(LEVELS)}]"
"""YAML of 500 characters that is ten billion values when it is written out."""

WRONG_TYPES: dict[str, tuple[Spoil, str]] = {
    "bomb for a rank": (part("llm", lora_rank=BOMB), "model.llm.lora_rank|llm.lora_rank: must be a whole number, not"),
    "bomb for a share": (part("llm", lora_dropout=BOMB), "llm.lora_dropout: must be a number, not"),
    "bomb for a list": (part("llm", lora_targets=BOMB), "llm.lora_targets: must be a list, not"),
    "bomb for a choice": (part("llm", dequantize=BOMB), "llm.dequantize: must be auto or always or never, not"),
    "bomb for a flag": (part("vision", train=BOMB), "vision.train: must be true or false, not"),
    "bomb for a part": (config(lambda c: c["model"].update(fusion=BOMB)), "fusion is a mapping of keys, not"),
    "bomb for a model": (config(lambda c: c.update(model=BOMB)), "the config is a mapping of keys, not"),
    "bomb for an image": (config(lambda c: c["image"].update(size=BOMB)), "size: must be a whole number, not"),
    "bomb for a temperature": (config(lambda c: c["calibration"].update(temperature=BOMB)), "must be a number, not"),
    "bomb for a range": (vital(plausible=BOMB), "plausible: must be a list, not"),
    "bomb in a range": (vital(plausible=[BOMB, 1]), r"plausible\[0\]: must be a number, not"),
    "bomb for conversions": (vital(accepts=BOMB), "accepts: must be a mapping of keys, not"),
    "bomb in a conversion": (vital(accepts={"mg/dL": BOMB}), "accepts.mg/dL: must be a list, not"),
    "bomb in statistics": (config(lambda c: c["statistics"].update(centre=BOMB)), "is no list of numbers"),
    "edges beyond 32 bits": (
        config(lambda c: c["statistics"]["edges"][0].__setitem__(0, -1e308)),
        "no list of numbers below 1e.30",
    ),
    "bomb for labels": (config(lambda c: c.update(labels=BOMB)), "is no list of names"),
    "bomb for a hash": (
        config(lambda c: c.update(base_fingerprint=[BOMB])),
        "base_fingerprint: .* is no text",
    ),
    "text for a number": (part("vision", grid="2"), "vision.grid: must be a whole number, not '2'"),
    "part of a whole number": (part("vision", grid=2.0), "vision.grid: must be a whole number, not '2.0'"),
    "truth for a number": (part("vision", grid=True), "vision.grid: must be a whole number, not 'True'"),
    "number for a truth": (part("fusion", z_token=1), "fusion.z_token: must be true or false, not '1'"),
    "text for a truth": (part("vision", train="yes"), "vision.train: must be true or false, not 'yes'"),
    "nothing for a number": (part("llm", lora_rank=None), "llm.lora_rank: must be a whole number, not 'None'"),
    "number for a text": (part("prompt", system=7), "prompt.system: must be a text, not '7'"),
    "number for a text or nothing": (part("llm", revision=7), "llm.revision: must be a text or null, not '7'"),
    "list for a choice": (
        part("llm", quantization=["nf4"]),
        "must be nf4 or fp4 or int8 or none, not a list",
    ),
    "mapping for a list": (vital(aliases={"a": 1}), "aliases: must be a list, not a mapping of keys"),
    "number in a list": (vital(categories=["F", 1]), r"categories\[1\]: must be a text, not '1'"),
    "list for a number": (vital(reference=[[1], 2]), r"reference\[0\]: must be a number, not a list"),
}

REPOSITORIES = ["hf_hub:evil/cnn", "hf-hub:evil/cnn", "local-dir:/etc", "file:///etc/cnn", "https://evil/cnn",
                "evil/cnn", "../cnn", "resnet18\n", ""]  # fmt: skip

GIANTS: dict[str, tuple[Spoil, str]] = {
    "cnn of a billion": (part("vision", name="vit_giant_patch14_dinov2"), "vision.name: .* takes no images of 32"),
    "cnn of four billion": (part("vision", name="eva02_enormous_patch14_clip_224"), "takes no images of 32"),
    "transformer of a billion": (part("vision", name="vit_giant_patch16_gap_224"), "vlm.safetensors: tensor "),
    "layers of an encoder": (
        part("vision", name="transformers:vit", options='{"num_hidden_layers": 1000000}'),
        "num_hidden_layers: must be at most 128, not 1000000",
    ),
    "width of an encoder": (
        part("vision", name="transformers:vit", options='{"hidden_size": 49152, "patch_size": 16}'),
        "vlm.safetensors: tensor ",
    ),
    "depths of an encoder": (
        part("vision", name="transformers:swin", options='{"depths": [128, 128, 128, 128, 128]}'),
        "depths: must be at most 512 in all",
    ),
    "larger cnn": (part("vision", name="convnext_xxlarge"), "vlm.safetensors: tensor "),
    "vector times grid": (part("vision", summary_grid=16), "tensor joint.from_image.weight has another shape"),
    "image tokens": (part("vision", grid=32), "tensor vision.position has another shape"),
    "length of z": (part("fusion", size=16_384), "vlm.safetensors: tensor .* has another shape"),
    "vitals tokens": (part("vitals", tokens=256), "vlm.safetensors: tensor vitals"),
    "labels": (config(lambda c: c.update(labels=[f"label {n}" for n in range(1000)])), "tensor .* has another shape"),
    "categories": (config(lambda c: c["vitals"][3].update(categories=[f"c{n}" for n in range(1000)])), "vitals"),
    "all categories": (config(lambda c: c.update(vitals=[v | {"categories": ["c"] * 1024} for v in c["vitals"] * 2])),
                       "vitals: more than 4,096 categories"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_value_has_the_type_of_its_field_before_anything_reads_it(name: str, folder: Path) -> None:  # noqa: F811
    spoil, message = WRONG_TYPES[name]
    spoil(folder)
    write_manifest(folder)
    said = refusal(folder)
    assert "config.json: " in said, said
    assert re.search(message, said), said


@pytest.mark.parametrize("name", REPOSITORIES)
def test_an_adapter_names_no_cnn_of_another_repository(name: str, folder: Path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("timm was asked"))
    part("vision", name=name)(folder)
    write_manifest(folder)
    assert "config.json: model.vision.name: timm has no model" in refusal(folder)


@pytest.mark.parametrize("name", GIANTS)
def test_no_part_is_built_that_the_file_does_not_hold(name: str, folder: Path) -> None:  # noqa: F811
    spoil, message = GIANTS[name]
    spoil(folder)
    write_manifest(folder)
    said = refusal(folder)
    assert re.search(message, said), said


PINS = {
    "no commit": ({"weights": "hf-hub:user/cnn", "sha256": "0" * 64}, "write hf-hub:ORG/NAME@COMMIT"),
    "a branch": ({"weights": "hf-hub:user/cnn@main", "sha256": "0" * 64}, "write hf-hub:ORG/NAME@COMMIT"),
    "no hash": ({"weights": f"hf-hub:user/cnn@{'a' * 40}"}, "sha256: is 64 digits"),
    "another file": ({"weights": f"hf-hub:user/cnn@{'a' * 40}/model.pth", "sha256": "0" * 64}, "write hf-hub:"),
    "code": ({"options": '{"auto_map": {"AutoModel": "evil--x.y"}}'}, "auto_map' is no option of an architecture"),
    "a kernel": ({"options": '{"attn_implementation": "evil/kernel"}'}, "is no option of an architecture"),
    "a file": ({"options": '{"act_layer": "../../etc"}'}, "is no option of an architecture"),
    "a checkpoint": ({"options": '{"checkpoint_path": "x.pth"}'}, "is no option of an architecture"),
    "no JSON": ({"options": "{"}, "model.vision.options: is no JSON"),
    "a list": ({"options": "[1]"}, "must be a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("name", PINS)
def test_an_encoder_is_pinned_and_its_options_are_of_an_architecture(name: str, folder: Path, monkeypatch) -> None:  # noqa: F811
    changes, message = PINS[name]
    monkeypatch.setattr("vlm.model.encoders.locate.cached_file", lambda *_, **__: pytest.fail("the Hub was asked"))
    part("vision", train=False, **changes)(folder)
    write_manifest(folder)
    said = refusal(folder)
    assert message in said, said


def test_a_cnn_that_would_be_fetched_is_bounded(folder: Path, monkeypatch) -> None:  # noqa: F811
    part("vision", weights="pretrained", train=False)(folder)
    rest = {name: value for name, value in load_file(folder / REST).items() if not name.startswith("vision.cnn.")}
    save_file(rest, folder / REST)
    write_manifest(folder)
    monkeypatch.setattr(bounds, "MOST_PARAMETERS", 50_000)
    assert "model.vision.name: test_efficientnet has " in refusal(folder)


def test_a_lora_on_layers_that_its_file_does_not_hold_is_not_made(folder: Path, monkeypatch) -> None:  # noqa: F811
    part("llm", lora_rank=1024, lora_targets=["all-linear"])(folder)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_A.weight": torch.zeros(1024, 64), f"{name}.lora_B.weight": torch.zeros(64, 1024)},
              folder / LORA)  # fmt: skip
    lora(r=1024, target_modules=["q_proj"])(folder)
    write_manifest(folder)
    monkeypatch.setattr("vlm.model.clinical_vlm.add_lora", lambda *a, **k: pytest.fail("it was made"))
    assert f"{LORA}: holds 131,072 values, the LoRA of its base has 2,097,152" in refusal(folder)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("file", [REST, LORA, "config.json", "metrics.json"])
def test_a_file_with_a_hole_of_a_terabyte_is_not_read(file: str, sealed: bool, folder: Path) -> None:  # noqa: F811
    os.truncate(folder / file, 1 << 40)
    if sealed:  # a stranger may write any manifest
        manifest(lambda files: files[file].update(size=1 << 40))(folder)
    assert f"{file}: larger than " in refusal(folder)


def test_a_size_is_compared_before_a_file_is_read(folder: Path, monkeypatch) -> None:  # noqa: F811
    os.truncate(folder / REST, 4 << 30)
    size = f"{REST}: damaged: {4 << 30} bytes"
    assert size in refusal(folder)


# ------------------------------------------------------------------------------------ what is shown

LONG = "\u202e\x1b[31m" + "A" * 1_500_000


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update({"A" * 1_500_000: 1}),
        lambda c: c.update({"A" * 1_500_000: "\x1b[31m"}),
        lambda c: c.update({"A" * 1_500_000: ["a"] * 1025}),
        lambda c: c.update({"A" * 1_000_000: [["b"] * 1000] * 100}),  # a path for each would be 100 GB
        lambda c: c["model"].update({"A" * 1_500_000: 1}),
        lambda c: c.update(format="A" * 1_500_000),
        lambda c: c.update(base_fingerprint="A" * 1_500_000),
        lambda c: c.update(labels=["A" * 1_500_000]),
        lambda c: c["model"]["llm"].update(base="A" * 1_500_000),
        lambda c: c["model"]["vision"].update(name="A" * 1_500_000),
    ],
)
def test_a_megabyte_of_untrusted_text_is_cut(change, folder: Path) -> None:  # noqa: F811
    config(change)(folder)
    write_manifest(folder)
    with watched():
        try:
            load(folder)
        except UserError as error:
            assert len(str(error)) < 4200 and str(error).isprintable()


def test_a_message_is_cut_and_escaped_whoever_wrote_what_it_quotes() -> None:
    said = str(UserError(f"x.csv: row 3: {LONG}"))
    assert said.startswith(r"x.csv: row 3: \u202e\x1b[31mAAA") and len(said) < 4100 and said.endswith("…")
    assert str(UserError("Größe ≥ 3 °C: 脑")) == "Größe ≥ 3 °C: 脑", "other languages stay as they are"


def test_a_message_is_one_line_whoever_wrote_what_it_quotes(capsys) -> None:
    forged = UserError("x.parquet: column a\nerror: fine unpacks to 64 MiB")
    wrapped = UserError(
        f"Caught UserError in DataLoader worker process 0.\nTraceback …\nvlm.errors.UserError: {forged}\n"
    )
    for error in (forged, wrapped):

        def fail(error: UserError = error) -> None:
            raise error

        with pytest.raises(SystemExit):
            run_program(fail)
        assert capsys.readouterr().err == "error: x.parquet: column a\\nerror: fine unpacks to 64 MiB\n"
    log_rank0("warning: \x1b[2J\u202e", "two\nlines")
    assert capsys.readouterr().err == "warning: \\x1b[2J\\u202e\ntwo\nlines\n"


def test_what_is_printed_of_a_report_has_an_end() -> None:
    labels = {f"{n} " + "a" * 190: n / 1000 for n in range(1000)}
    printed = Report("Draft.", labels, warnings=tuple("b" * 500 for _ in range(300))).after_text()
    assert len(printed) < 12_000 and "and 960 less probable labels; --json holds them all" in printed
    assert "999 aaa" in printed and "260 more; --json holds them all" in printed
    assert "\x1b" not in Report("", {"a\x1b[2J": 1.0}, warnings=("\x1b]0;x\x07",)).after_text()
    few = {"pathology": 0.2, "effusion": 0.9}
    assert Report("", few).probability_lines() == ["pathology   20.0%", "effusion    90.0%"], "a few stay in order"


# ------------------------------------------------------------------------------------ the Hub


def test_no_file_of_a_hub_is_fetched_before_its_size_is_known(hub, folder: Path, monkeypatch) -> None:  # noqa: F811
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.add("evil/large", files | {"run.py": b"x", "pytorch_model.bin": b"x"})
    monkeypatch.setattr(reading, "LARGEST_TENSORS", 10_000)
    with pytest.raises(UserError, match=r"evil/large: (adapter_model|vlm)\.safetensors: .* more than the 0 MiB"):
        resolve("evil/large")
    assert not [line for line in hub.seen if line.startswith("GET") and "/resolve/" in line], "nothing was fetched"
    monkeypatch.undo()


def test_only_files_of_an_adapter_are_fetched(hub, folder: Path) -> None:  # noqa: F811
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    hub.add("evil/more", files | {"run.py": b"x", "pytorch_model.bin": b"x", "sub/config.json": b"{}"})
    resolve("evil/more")
    fetched = {line.rpartition("/")[2] for line in hub.seen if line.startswith("GET") and "/resolve/" in line}
    assert not fetched & {"run.py", "pytorch_model.bin"} and "/sub/" not in " ".join(hub.seen)


def test_nothing_is_fetched_where_no_size_was_told(hub, folder: Path, monkeypatch) -> None:  # noqa: F811
    hub.add("evil/mute", {file.name: file.read_bytes() for file in folder.iterdir()})
    monkeypatch.setattr(hub_room, "_check_sizes", lambda *a: False)
    with pytest.raises(UserError, match="it cannot be reached, and the cache does not hold the whole adapter"):
        resolve("evil/mute")


# ------------------------------------------------------------------------------------ a CNN of a repository, one's own


def test_an_adapter_carries_a_small_cnn_of_a_repository_and_names_the_architecture_alone(
    tiny_config: Config, tmp_path: Path, monkeypatch
) -> None:
    from vlm.data.ingest.sources import load_cohort
    from vlm.training.run import build_model

    def adapter_of(options: dict[str, Any], name: str) -> tuple[Any, Path]:
        place = tmp_path / name / "snapshots" / ("a" * 40)
        place.mkdir(parents=True)
        own = {"input_size": [options.get("in_chans", 3), 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}
        written = {"architecture": "test_efficientnet", "model_args": options, "pretrained_cfg": own}
        (place / "config.json").write_text(json.dumps(written))
        cnn = timm.create_model("test_efficientnet", num_classes=0, **options)
        save_file(cnn.state_dict(), place / "model.safetensors")

        def fetch(_: str, file: str, **__: Any) -> str | None:
            return str(place / file) if (place / file).exists() else None

        monkeypatch.setattr("vlm.model.encoders.locate.cached_file", fetch)
        vision = replace(tiny_config.model.vision, name="hf_hub:user/cnn", weights="pretrained", train=False)
        config = replace(tiny_config, model=replace(tiny_config.model, vision=vision))
        model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32).eval()
        adapter = save(model, tmp_path / f"adapter of {name}")
        monkeypatch.setattr("vlm.model.encoders.locate.cached_file", lambda *_, **__: pytest.fail("the Hub was asked"))
        return model, adapter

    for options, name in (({}, "plain"), ({"in_chans": 1}, "grey")):
        model, adapter = adapter_of(options, name)
        read = read_config(adapter)
        named = read.model.vision
        assert (named.name, named.weights, named.sha256) == ("test_efficientnet", "random", None)
        assert named.options == ('{"in_chans":1}' if options else "")
        assert (read.spec.image.mean, read.spec.image.channels) == (0.5, options.get("in_chans", 3))
        again = load(adapter, device=torch.device("cpu"), dtype=torch.float32)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


# ------------------------------------------------------------------------------------ a config of a colleague

CONFIGS: dict[str, tuple[str, str]] = {
    "aliases": (f"train: {BOMB}", "not valid YAML: its aliases stand for more than 4,194,304 characters"),
    "merges": ("a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n"
               for n in range(1, 10)), "its aliases stand for more than"),
    "circle": ("train: &a [*a]", "its aliases stand for more than"),
    "long texts": ("a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 100) + "]", "its aliases stand for"),
    "depth": ("[" * 100_000, "not valid YAML: nested too deeply"),
    "size": ("#" * 600_000, "cannot read the config: larger than 512 KiB"),
    "digits": ("train: {seed: " + "9" * 100_000 + "}", "is too long a number"),
    "sexagesimal": ("train: {seed: 1" + ":59" * 50_000 + "}", "is too long a number"),
    "python": ("train: !!python/object/apply:os.system ['touch x']", "not valid YAML: could not determine"),
    "text in a number": (f"train: {{seed: '{BOMB}'}}", "train.seed: must be a whole number, not"),
    "short text in a number": ("train: {seed: '[&a [1], *a]'}", "train.seed: must be a whole number, not"),
    "text in a list": (f"train: {{report_to: '{BOMB}'}}", "train.report_to: must be a list, not"),
    "text in a choice of two": (f"train: {{max_steps: '{BOMB}'}}", "train.max_steps: must be a whole number, not"),
    "text in a vital": (f"data: {{table: {{vitals: [{{name: a, plausible: '{BOMB}'}}]}}}}",
                        "data.table.vitals[0].plausible: must be a list, not"),
    "text in a vital's range": (f"data: {{table: {{vitals: [{{name: a, plausible: ['{BOMB}']}}]}}}}",
                                "data.table.vitals[0].plausible[0]: must be a number, not"),
    "text in a source": (f"data: {{sources: [{{weight: '{BOMB}'}}]}}", "data.sources[0].weight: must be a number"),
    "text for a conversion": (f"data: {{table: {{vitals: [{{name: a, accepts: {{b: '{BOMB}'}}}}]}}}}",
                              "data.table.vitals[0].accepts.b: must be a list, not"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_ends_in_one_line(name: str, tmp_path: Path) -> None:
    content, message = CONFIGS[name]
    file = tmp_path / "job.yaml"
    file.write_text(content)
    with watched(), pytest.raises(UserError) as error:
        parse_config(["--config", str(file)])
    said = str(error.value)
    assert message in said and "\n" not in said and len(said) < 1000, said


def test_a_config_may_use_anchors_and_numbers_as_yaml_has_them(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "train: {learning_rate: 1e-3, lora_learning_rate: &rate 2e-4, vision_learning_rate: *rate, seed: '3'}\n"
        "model: {prompt: {system: '&a *b " + "x" * 300 + "'}}\n"
    )
    config = parse_config(["--config", str(file)])[0]
    train = config.train
    assert (train.learning_rate, train.lora_learning_rate, train.vision_learning_rate) == (1e-3, 2e-4, 2e-4)
    assert train.seed == 3 and config.model.prompt.system.startswith("&a *b xxx")


@pytest.mark.parametrize("head", [f"a: {BOMB}", "a: &a [*a]", "[" * 100_000])
def test_a_card_is_measured_before_it_is_parsed(head: str) -> None:
    from vlm.adapter.metadata import CardDetails, with_details

    with watched(), pytest.raises(UserError, match=r"README\.md: the Hub cannot read the card's head"):
        with_details(f"---\n{head}\n---\n# Card\n", CardDetails(), "README.md")


def test_a_runs_config_is_measured_before_it_is_parsed(tmp_path: Path) -> None:
    from vlm.evaluation.compare import _options
    from vlm.training.monitor.run_state import _read_config

    (tmp_path / "config.yaml").write_text(f"train: {BOMB}")
    for read in (lambda: _options(tmp_path), lambda: _read_config(tmp_path / "config.yaml")):
        with watched(), pytest.raises(UserError, match="its aliases stand for more than"):
            read()
