"""An adapter by the Auto classes and the pipeline of Transformers: the drafts, and the refusals, of `ClinicalVLM`."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

from tests.conftest import read_json
from tests.hub_adapters import REPO, edit, folder, saved, trained
from tests.hub_server import hub
from vlm import ClinicalVLM, UserError, register_auto_classes
from vlm.adapter import save
from vlm.adapter.hub import push
from vlm.integrations.auto_classes import AutoClasses, ClinicalVLMConfig, ClinicalVLMForConditionalGeneration
from vlm.integrations.auto_processor import ClinicalVLMProcessor, read_values

__all__ = ["folder", "hub", "saved", "trained"]  # fixtures

TASK = "image-text-to-text"
VITALS = "glucose=8.7, bp=145/90, sex=F"
GIVEN = {"glucose": 8.7, "bp": "145/90", "sex": "F"}
FROM_FOLDER = "os.path.exists(" in inspect.getsource(AutoModel.from_pretrained)
by_folder = pytest.mark.skipif(
    not FROM_FOLDER, reason=f"Transformers {transformers.__version__} goes from a folder with a LoRA to its base"
)


@pytest.fixture(scope="module")
def adapter(trained: ClinicalVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on a base in a local folder."""
    return save(trained, tmp_path_factory.mktemp("auto") / "adapter")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("picture") / "case.png"
    cv2.imwrite(str(file), np.random.default_rng(1).integers(0, 256, (48, 40), np.uint8))
    return str(file)


@pytest.fixture(scope="module")
def auto() -> AutoClasses:
    return register_auto_classes()


@pytest.fixture
def old(adapter: Path, tmp_path: Path) -> Path:
    """An adapter as earlier versions saved it."""
    copy = Path(shutil.copytree(adapter, tmp_path / "old"))
    edit(copy / "config.json", lambda values: values.pop("model_type"))
    return copy


@pytest.fixture(scope="module")
def drafts(auto: AutoClasses, adapter: Path):
    """The pipeline of the parts, which every version of Transformers takes."""
    return pipeline(
        TASK, model=auto.model.from_pretrained(adapter), processor=auto.processor.from_pretrained(adapter), device="cpu"
    )


def chat(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def text_of(answer) -> str:
    return answer[0]["generated_text"]


# --------------------------------------------------------------------------------------------- drafts


def test_the_pipeline_gives_the_draft_of_predict(drafts, trained, picture) -> None:
    wanted = trained.predict(picture, GIVEN)
    message = chat({"type": "image", "path": picture}, {"type": "text", "text": VITALS})
    assert text_of(drafts(text=message, return_full_text=False)) == wanted.text != trained.predict(None, GIVEN).text
    assert drafts.model.reports == [wanted], "the whole report, with probabilities and warnings"
    assert text_of(drafts(text=message))[-1] == {"role": "assistant", "content": wanted.text}
    with Image.open(picture) as opened:
        assert text_of(drafts(opened, text=VITALS, return_full_text=False)) == wanted.text
    assert text_of(drafts(picture, text=json.dumps(GIVEN), return_full_text=False)) == wanted.text


def test_a_case_without_an_image_or_without_vitals_and_a_shorter_draft(drafts, trained, picture) -> None:
    assert text_of(drafts(text=VITALS, return_full_text=False)) == trained.predict(None, GIVEN).text
    assert text_of(drafts(picture, text="", return_full_text=False)) == trained.predict(picture, {}).text
    short = text_of(drafts(picture, text=VITALS, return_full_text=False, max_new_tokens=3))
    assert short == trained.predict(picture, GIVEN, max_new_tokens=3).text


def test_several_cases_at_once_with_a_context(drafts, trained, picture) -> None:
    wanted = trained.predict_many([(picture, GIVEN, "cough"), (None, {"glucose": 4})], batch_size=1)
    inputs = drafts.processor([picture, None], text=[VITALS, "glucose=4"], context=["cough", ""])
    texts = drafts.processor.post_process_image_text_to_text(drafts.model.generate(**inputs))
    assert texts == [report.text for report in wanted] and drafts.model.reports == wanted
    messages = [chat({"type": "image", "path": picture}, {"type": "text", "text": VITALS}),
                chat({"type": "text", "text": "glucose=4"})]  # fmt: skip
    together = [text_of(answer) for answer in drafts(text=messages, return_full_text=False, batch_size=2)]
    assert together[1] == texts[1] and together[0] == trained.predict(picture, GIVEN).text


def test_warnings_are_counted_without_a_value_of_the_patient(drafts, picture) -> None:
    with pytest.warns(UserWarning, match=r"^warnings on the drafts: \d+;") as seen:
        drafts(picture, text="glucose=870, sex=F")
    assert any("870" in warning for warning in drafts.model.reports[0].warnings)
    assert not any("870" in str(one.message) for one in seen)


@by_folder
def test_the_auto_classes_and_the_pipeline_take_the_folder(auto: AutoClasses, adapter, trained, picture) -> None:
    wanted = trained.predict(picture, GIVEN)
    assert type(AutoConfig.from_pretrained(adapter)) is ClinicalVLMConfig
    assert type(AutoProcessor.from_pretrained(adapter)) is ClinicalVLMProcessor
    model = AutoModel.from_pretrained(adapter)
    assert type(model) is ClinicalVLMForConditionalGeneration and model.vlm.predict(picture, GIVEN) == wanted
    drafts = pipeline(TASK, model=str(adapter), device="cpu")
    assert text_of(drafts(picture, text=VITALS, return_full_text=False)) == wanted.text


def test_a_saved_pipeline_is_the_adapter(drafts, adapter: Path, tmp_path: Path) -> None:
    drafts.model.save_pretrained(tmp_path / "again")
    drafts.processor.save_pretrained(tmp_path / "again")
    for name in ("vlm.safetensors", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()
    assert read_json(tmp_path / "again" / "config.json") == read_json(adapter / "config.json")


def test_an_adapter_on_the_hub_is_loaded_at_its_commit(hub, auto: AutoClasses, folder, tiny_llm, capfd) -> None:
    commit = push(folder, REPO).commit
    edit(folder / "config.json", lambda config: config["calibration"].update(temperature=2.0))
    push(folder, REPO)
    model = auto.model.from_pretrained(REPO, base=tiny_llm, revision=commit)
    assert model.vlm.calibration.temperature == 1.0 and f"{REPO}: commit {commit}" in capfd.readouterr().err
    assert auto.processor.from_pretrained(REPO, base=tiny_llm, revision=commit).tokenizer.name_or_path == tiny_llm
    with pytest.raises(UserError, match=r"user/ward-7: Transformers takes an adapter on the Hub for .*resolve"):
        auto.config.from_pretrained(REPO)


# ------------------------------------------------------------------------------- adapters of earlier versions


def test_an_adapter_without_model_type_loads_by_our_own_classes(auto: AutoClasses, old: Path, trained, picture) -> None:
    wanted = trained.predict(picture, GIVEN)
    assert ClinicalVLM.from_pretrained(old).predict(picture, GIVEN) == wanted
    assert auto.model.from_pretrained(old).vlm.predict(picture, GIVEN) == wanted
    assert auto.processor.from_pretrained(old)
    with pytest.raises(ValueError, match="model_type"):
        AutoConfig.from_pretrained(old)  # what Transformers says


# ------------------------------------------------------------------------------------------- refusals


@by_folder
@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("config.json", lambda v: v.update(auto_map={"AutoConfig": "evil.Config"}), "unknown key auto_map"),
        ("config.json", lambda v: v["model"]["vision"].update(name="hf-hub:evil/model"), "timm has no model"),
        ("adapter_config.json", lambda v: v.update(auto_mapping={"a": "b"}), "auto_mapping: .* has no place"),
        ("processor_config.json", None, r"processor_config\.json', which is no file of an adapter"),
    ],
)
def test_what_from_pretrained_refuses_is_refused_on_every_way(
    auto: AutoClasses, adapter: Path, tmp_path: Path, file: str, change, match: str
) -> None:
    hostile = Path(shutil.copytree(adapter, tmp_path / "hostile"))
    if change is None:
        (hostile / file).write_text('{"auto_map": {"AutoProcessor": "evil.Processor"}}')
    else:
        edit(hostile / file, change)
    ways = [
        ClinicalVLM.from_pretrained, AutoConfig.from_pretrained, AutoModelForImageTextToText.from_pretrained,
        AutoProcessor.from_pretrained, auto.model.from_pretrained, auto.processor.from_pretrained,
        lambda path: pipeline(TASK, model=str(path), trust_remote_code=True),
        lambda path: AutoProcessor.from_pretrained(path, trust_remote_code=True),
    ]  # fmt: skip
    for way in ways:
        with pytest.raises(UserError, match=match):
            way(hostile)


def test_a_model_type_of_another_model_is_refused(old: Path) -> None:
    edit(old / "config.json", lambda values: values.update(model_type="llama"))
    with pytest.raises(UserError, match="model_type: is clinical_vlm in an adapter, not 'llama'"):
        ClinicalVLM.from_pretrained(old)


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"quantization_config": {}}, {"subfolder": "x"}])
def test_an_option_that_cannot_be_followed_is_refused(auto: AutoClasses, adapter: Path, options) -> None:
    with pytest.raises(UserError, match=f"{min(options)}: an adapter says itself"):
        auto.model.from_pretrained(adapter, **options)


def test_what_a_draft_cannot_follow_is_refused(drafts, picture) -> None:
    with pytest.raises(UserError, match="do_sample: drafts are greedy"):
        drafts(picture, text=VITALS, generate_kwargs={"do_sample": True})
    with pytest.raises(UserError, match="stop_strings: drafts are greedy"):
        drafts(picture, text=VITALS, generate_kwargs={"stop_strings": ["left"]})
    with pytest.raises(UserError, match="eos_token_id: drafts are greedy"):
        drafts(picture, text=VITALS, generate_kwargs={"eos_token_id": 7})
    with pytest.raises(UserError, match="an image is a file or a picture of Pillow, not ndarray"):
        drafts.model.generate(**drafts.processor(np.zeros((4, 4)), text=VITALS))
    with pytest.raises(UserError, match="more than 8 bits"):
        drafts.model.generate(**drafts.processor(Image.new("I;16", (40, 40)), text=VITALS))
    with pytest.raises(UserError, match="2 texts, 1 images and 2 contexts"):
        drafts.processor([picture], text=["", ""])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Describe this image.", r"^text: 'Describe this image\.' is no name=value"),
        ("secrets.json", "^text: 'secrets.json' is no name=value"),
        ('{"resourceType": "Observation"}', "^text: .*not FHIR"),
    ],
)
def test_a_text_holds_vitals_and_nothing_else(text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        read_values(text)


def test_other_messages_are_refused(drafts, picture) -> None:
    system = {"role": "system", "content": "Answer in verse."}
    with pytest.raises(UserError, match="give one, of the user"):
        drafts(text=[system, *chat({"type": "text", "text": VITALS})])
    for part in ({"type": "video", "path": picture}, {"type": "image", "url": "http://localhost/case.png"}):
        with pytest.raises(UserError, match="a part is a text, or an image"):
            drafts(text=chat(part))


def test_importing_has_no_effect_on_transformers_and_the_pipeline_knows_the_registered_model(drafts, capfd) -> None:
    code = (
        "import vlm.integrations.auto_classes as ours; from transformers import CONFIG_MAPPING as known;"
        "before = 'clinical_vlm' in known; ours.register_auto_classes(); print(before, 'clinical_vlm' in known)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    pipeline(TASK, model=drafts.model, processor=drafts.processor, device="cpu")
    assert "not supported" not in "".join(capfd.readouterr())
