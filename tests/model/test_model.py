"""The model's contract: equations by hand, gradients where they belong, missing inputs, generation."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models import register_model

from tests.conftest import public
from vlm.config import Config, FusionConfig, VisionConfig
from vlm.data.case import make_example
from vlm.data.collate import IGNORED, Collator
from vlm.data.ingest.sources import load_cohort
from vlm.data.study import StudyPicture
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model
from vlm.training.self_test import self_test


def rebuild(config: Config, **parts) -> ClinicalVLM:
    """A model of `config` with some parts configured otherwise."""
    config = replace(config, model=replace(config.model, **parts))
    return build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)


def test_equation_4_by_hand(tiny_model: ClinicalVLM, tiny_batch) -> None:
    """z = W_f f + W_x x + b, with f the pooled CNN features and x the encoded vitals."""
    tiny_model.eval()
    with torch.no_grad():
        f = tiny_model.vision(tiny_batch["pixel_values"], tiny_batch["has_image"]).f
        _, x = tiny_model.vitals(tiny_batch["vitals"])
        encoded = tiny_model.encode(tiny_batch["pixel_values"], tiny_batch["has_image"], tiny_batch["vitals"])
        features = tiny_model.vision.cnn(tiny_batch["pixel_values"]).mean(dim=(2, 3))  # summary_grid 1: the mean
    torch.testing.assert_close(f[tiny_batch["has_image"]], features[tiny_batch["has_image"]], rtol=1e-4, atol=1e-5)
    joint = tiny_model.joint
    z = torch.stack(
        [
            joint.from_image.weight @ f[i] + joint.from_vitals.weight @ x[i] + joint.from_image.bias
            for i in range(len(f))
        ]
    )
    torch.testing.assert_close(encoded.z, z)
    torch.testing.assert_close(encoded.logits, joint.head(z))


def test_equation_5_by_hand(tiny_model: ClinicalVLM, tiny_batch) -> None:
    """L = alpha BCE + (1 - alpha) CE, with CE from the full logits of the language model."""
    tiny_model.eval()
    with torch.no_grad():
        output = tiny_model(**tiny_batch, alpha=0.3)
        encoded = tiny_model.encode(tiny_batch["pixel_values"], tiny_batch["has_image"], tiny_batch["vitals"])
        embeddings = tiny_model.embed(tiny_batch["input_ids"], tiny_batch["evidence_mask"], encoded.tokens)
        logits = tiny_model.llm(inputs_embeds=embeddings, attention_mask=tiny_batch["attention_mask"]).logits
    ce = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tiny_batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )
    known = ~torch.isnan(tiny_batch["targets"])
    bce = torch.nn.functional.binary_cross_entropy_with_logits(output.logits[known], tiny_batch["targets"][known])
    torch.testing.assert_close(output.loss_ce, ce)
    torch.testing.assert_close(output.loss_bce, bce)
    torch.testing.assert_close(output.loss, 0.3 * bce + 0.7 * ce)
    torch.testing.assert_close(output.case_losses.sum() / output.case_tokens.sum(), ce)


def everything(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers, those that are not saved among them."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def test_the_gradient_reaches_all_that_trains_and_changes_nothing_else(tiny_model: ClinicalVLM, tiny_batch) -> None:
    tiny_model.train()
    tiny_batch["has_image"][0], tiny_batch["vitals"][0] = False, float("nan")  # so that the missing vectors are used
    trainable = tiny_model.trainable_parameters()
    before = {name: value.clone() for name, value in everything(tiny_model).items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    for _ in range(2):  # LoRA's A has no gradient while B is zero
        optimizer.zero_grad()
        tiny_model(**tiny_batch).loss.backward()
        optimizer.step()
    unreached = [name for name, value in trainable.items() if value.grad is None or not value.grad.any()]
    assert not unreached
    frozen = {name for name in before if name not in trainable}
    assert frozen and all(torch.equal(before[name], everything(tiny_model)[name]) for name in frozen)
    assert all(not torch.equal(before[name], trainable[name]) for name in trainable)


def test_a_frozen_cnn_stays_as_it_was_whatever_train_is_called(tiny_config: Config, tiny_batch) -> None:
    model = rebuild(tiny_config, vision=replace(tiny_config.model.vision, train=False))
    model.train()
    assert not any(module.training for module in model.vision.cnn.modules())
    assert not any(name.startswith("vision.cnn.") for name in model.trainable_parameters())
    before = {name: value.clone() for name, value in model.vision.cnn.state_dict().items()}
    model(**tiny_batch).loss.backward()
    assert all(torch.equal(value, model.vision.cnn.state_dict()[name]) for name, value in before.items())


def test_frozen_stages_freeze_from_the_stem(tiny_config: Config) -> None:
    model = rebuild(tiny_config, vision=replace(tiny_config.model.vision, frozen_stages=2))
    assert not model.vision.cnn.conv_stem.weight.requires_grad and model.vision.cnn.conv_head.weight.requires_grad
    with pytest.raises(UserError, match=r"stages; set model\.vision\.train false"):
        rebuild(tiny_config, vision=replace(tiny_config.model.vision, frozen_stages=99))


def test_missing_inputs_do_not_reach_the_model(tiny_model: ClinicalVLM, tiny_batch) -> None:
    """Pixels of an absent image, and the number under a missing vital, change nothing."""
    tiny_model.eval()
    vitals = torch.full_like(tiny_batch["vitals"], float("nan"))
    absent = torch.zeros_like(tiny_batch["has_image"])
    with torch.no_grad():
        one = tiny_model.encode(torch.rand_like(tiny_batch["pixel_values"]), absent, vitals)
        two = tiny_model.encode(torch.rand_like(tiny_batch["pixel_values"]), absent, vitals)
        seen = tiny_model.encode(tiny_batch["pixel_values"], ~absent, tiny_batch["vitals"])
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.logits, two.logits)
    assert torch.isfinite(one.tokens).all() and not torch.allclose(one.tokens, seen.tokens)


def test_each_missing_part_still_trains(tiny_model: ClinicalVLM, tiny_batch) -> None:
    """No image, no vitals, no label, no report: each alone and all together give finite losses and gradients."""
    nothing = {
        "has_image": torch.zeros_like(tiny_batch["has_image"]),
        "vitals": torch.full_like(tiny_batch["vitals"], float("nan")),
        "targets": torch.full_like(tiny_batch["targets"], float("nan")),
        "labels": torch.full_like(tiny_batch["labels"], IGNORED),
    }
    for part in [{name: value} for name, value in nothing.items()] + [nothing]:
        tiny_model.zero_grad()
        loss = tiny_model(**{**tiny_batch, **part}).loss
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in tiny_model.trainable_parameters().values())


def test_evidence_stands_in_its_places_at_the_size_of_words(tiny_model: ClinicalVLM, tiny_batch) -> None:
    with torch.no_grad():
        encoded = tiny_model.encode(tiny_batch["pixel_values"], tiny_batch["has_image"], tiny_batch["vitals"])
        embeddings = tiny_model.embed(tiny_batch["input_ids"], tiny_batch["evidence_mask"], encoded.tokens)
        words = tiny_model.base.get_input_embeddings()
    assert encoded.tokens.shape[1] == tiny_model.evidence_tokens == 4 + 2 + 1 + 1
    for row in range(len(embeddings)):
        assert torch.equal(embeddings[row][tiny_batch["evidence_mask"][row]], encoded.tokens[row])
    elsewhere = ~tiny_batch["evidence_mask"]
    assert torch.equal(embeddings[elsewhere], words(tiny_batch["input_ids"])[elsewhere])
    size = encoded.tokens.pow(2).mean().sqrt() / words.weight.pow(2).mean().sqrt()
    assert 0.9 < size < 1.1


def test_z_and_label_tokens_can_be_left_out(tiny_config: Config, tiny_batch) -> None:
    model = rebuild(tiny_config, fusion=FusionConfig(size=8, z_token=False, label_token=False))
    assert model.evidence_tokens == 4 + 2


def test_the_text_loss_does_not_bend_the_head(tiny_model: ClinicalVLM, tiny_batch) -> None:
    tiny_model(**tiny_batch, alpha=0.0).loss.backward()
    assert not tiny_model.joint.head[-1].weight.grad.any()


def test_with_alpha_1_the_language_model_does_not_run(tiny_model: ClinicalVLM, tiny_batch, monkeypatch) -> None:
    monkeypatch.setattr(ClinicalVLM, "trunk", lambda *_: pytest.fail("the language model ran"))
    output = tiny_model(**tiny_batch, alpha=1.0)
    assert output.loss == output.loss_bce and output.loss_ce == 0


def test_the_language_model_reads_only_cases_with_a_report(tiny_model: ClinicalVLM, tiny_batch, monkeypatch) -> None:
    trunk, shapes = tiny_model.trunk, []
    monkeypatch.setattr(tiny_model, "trunk", lambda e, mask: (shapes.append(tuple(mask.shape)), trunk(e, mask))[1])
    lengths = tiny_batch["attention_mask"].sum(dim=1)
    tiny_batch["labels"][lengths.argmax()] = IGNORED
    tiny_batch["labels"][0] = IGNORED
    written = (tiny_batch["labels"] >= 0).any(dim=1)
    whole = tiny_model(**tiny_batch)
    assert shapes == [(int(written.sum()), int(lengths[written].max()))]
    for row in range(len(written)):
        alone = tiny_model(**{name: value[row : row + 1] for name, value in tiny_batch.items()})
        torch.testing.assert_close(whole.case_losses[row], alone.case_losses[0], rtol=1e-4, atol=1e-5)


def test_batched_left_padded_generation_equals_single(tiny_model: ClinicalVLM) -> None:
    tiny_model.eval()
    size, vitals = tiny_model.spec.image.size, len(tiny_model.spec.schema)
    generator = torch.Generator().manual_seed(1)
    cases = []
    for number in range(5):
        picture = torch.randint(0, 256, (size, size), generator=generator, dtype=torch.uint8).numpy()
        x = torch.randn(vitals, generator=generator).abs().numpy()
        x[3] = number % 2
        cases.append(
            make_example(
                tiny_model.spec, [StudyPicture(picture)] if number != 2 else [], x, context="word " * (3 * number)
            )
        )
    collate = Collator(tiny_model.prompt, generation=True)
    together, logits = tiny_model.generate(collate(cases), 12, min_new_tokens=12)
    for number, case in enumerate(cases):
        alone, row = tiny_model.generate(collate([case]), 12, min_new_tokens=12)
        assert alone[0] == together[number]
        torch.testing.assert_close(row[0], logits[number], rtol=1e-4, atol=1e-5)
    assert len(set(together)) > 1


@register_model
def tokens_alone(pretrained: bool = False, **options: Any) -> torch.nn.Module:
    """A model of timm that gives tokens and does not tell where in the image they are."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, 16), torch.nn.Flatten(2))


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        (VisionConfig(name="no_such_cnn", weights="random"), "timm has no model no_such_cnn"),
        (VisionConfig(name="tokens_alone", weights="random"), "gives no grid of features"),
        (VisionConfig(name="test_efficientnet", weights="/no/file.safetensors"), "does not exist"),
        (
            VisionConfig(name="vit_small_patch14_dinov2", weights="random"),
            "takes no images of 160 pixels: .* patches of 14; set data.image_size 154 or 168",
        ),
        (VisionConfig(name="efficientformer_l1", weights="random"), "takes no images of 160 pixels .*image_size 224"),
        (VisionConfig(name="poolformer_s12", weights="random", frozen_stages=1), "poolformer_s12 has no stages"),
    ],
)
def test_a_wrong_encoder_is_one_clear_line(vision: VisionConfig, message: str, tiny_config: Config) -> None:
    config = replace(tiny_config, data=replace(tiny_config.data, image_size=160))
    with pytest.raises(UserError, match=message):
        rebuild(config, vision=vision)


@pytest.mark.parametrize("error", [AssertionError(), IndexError("list"), KeyError("x"), NotImplementedError("a\nb")])
@pytest.mark.parametrize("part", ["create_model", "forward"])
def test_whatever_a_cnn_raises_is_one_line(part: str, error, tiny_config: Config, monkeypatch) -> None:
    import timm

    def fail(*_, **__) -> None:
        raise error

    made = timm.create_model("test_efficientnet", num_classes=0, global_pool="")
    monkeypatch.setattr(made, "forward", fail)
    monkeypatch.setattr(timm, "create_model", fail if part == "create_model" else lambda *_, **__: made)
    with pytest.raises(UserError, match=r"^model\.vision.*test_efficientnet") as said:
        rebuild(tiny_config)
    assert "\n" not in str(said.value) and not str(said.value).endswith(": ")


def test_a_cnn_without_stages_trains_whole(tiny_config: Config) -> None:
    vision = VisionConfig(name="poolformer_s12", weights="random", grid=2, summary_grid=1)
    model = rebuild(replace(tiny_config, data=replace(tiny_config.data, image_size=64)), vision=vision)
    assert all(parameter.requires_grad for parameter in model.vision.cnn.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "/no/such/model"}, "does not exist"),
        ({"base": "USER/NO-SUCH"}, "cannot load USER/NO-SUCH"),
        ({"lora_targets": ["qqq"]}, "lora_targets"),
    ],
)
def test_a_wrong_llm_is_one_clear_line(change: dict, message: str, tiny_config: Config) -> None:
    with pytest.raises(UserError, match=message) as error:
        rebuild(tiny_config, llm=replace(tiny_config.model.llm, **change))
    assert "\n" not in str(error.value)


def test_nf4_packed_and_unpacked_give_the_same_numbers(tiny_config: Config, tiny_batch) -> None:
    models = [
        rebuild(tiny_config, llm=replace(tiny_config.model.llm, dequantize=dequantize)).eval()
        for dequantize in ("always", "never")
    ]
    plain = rebuild(tiny_config, llm=replace(tiny_config.model.llm, quantization="none")).eval()
    with torch.no_grad():
        unpacked, packed, exact = (model(**tiny_batch).loss_ce for model in (*models, plain))
    torch.testing.assert_close(unpacked, packed, rtol=1e-3, atol=1e-3)
    assert not torch.equal(unpacked, exact), "the weights were not quantised"


def test_an_evaluation_leaves_the_gradients_of_packed_weights_as_they_were(tiny_config: Config, tiny_batch) -> None:
    """On a CPU that multiplies bf16, bitsandbytes would repack a layer at its first pass without gradient."""
    model = rebuild(tiny_config, llm=replace(tiny_config.model.llm, dequantize="never"))
    with torch.no_grad():
        for name, value in model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.3)

    def gradients() -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        model(**tiny_batch, alpha=0.0).loss.backward()
        return {n: p.grad.clone() for n, p in model.trainable_parameters().items() if p.grad is not None}

    before = gradients()
    assert any("lora_A" in name for name in before)
    with torch.no_grad():
        model.eval()(**tiny_batch)
        model.prefix_kv_cache()
    for name, value in gradients().items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-7, msg=name)
    packed = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert len(packed) == 14 and not any(module.support_avx512bf16_for_cpu for module in packed)


@pytest.mark.parametrize(
    ("systolic", "diastolic", "wanted"),
    [(120, 80, "normal"), (120, 95, "elevated"), (150, 80, "elevated"), (85, 70, "low"), (150, 50, "elevated"),
     (float("nan"), 80, "not measured"), (float("nan"), 95, "elevated")],
)  # fmt: skip
def test_blood_pressure_is_one_measurement(systolic: float, diastolic: float, wanted: str) -> None:
    from vlm.data.ingest.phantom_words import VITALS
    from vlm.model.vitals import PRESSURE_STATES, VitalFeatures, pressure_state

    parts = [VitalFeatures(vital, 0.0, 1.0, (0.0, 1.0)) for vital in VITALS[1:3]]
    states = [encode(torch.tensor([value]))[1] for encode, value in zip(parts, (systolic, diastolic), strict=True)]
    state = pressure_state(*states)
    assert state.sum() == 1 and PRESSURE_STATES[int(state.argmax())] == f"blood pressure {wanted}"


@pytest.mark.parametrize("injection", ["text", "none"])
def test_vitals_in_words_or_in_z_alone_are_tried_and_drafted(injection: str, tiny_config: Config) -> None:
    model = rebuild(tiny_config, vitals=replace(tiny_config.model.vitals, injection=injection))
    assert self_test(model)[-1].startswith("self-test: a step, a draft")
    reports = public(model).predict_many([(None, {"glucose": 9}), (None, {})], max_new_tokens=3)
    assert len(reports) == 2


@pytest.mark.parametrize("injection", ["tokens", "text", "none"])
def test_vitals_can_be_shown_in_three_ways(injection: str, tiny_config: Config) -> None:
    model = rebuild(tiny_config, vitals=replace(tiny_config.model.vitals, injection=injection))
    examples = [make_example(model.spec, [], torch.tensor([value, 120, 80, 1]).numpy()) for value in (5.0, 9.0)]
    batch = Collator(model.prompt, generation=True)(examples)
    words = model.tokenizer.batch_decode(batch["input_ids"])
    assert ("glucose 9.0 mmol/L, systolic 120.0 mmHg" in words[1]) == (injection == "text")
    encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
    assert model.vitals.tokens == (2 if injection == "tokens" else 0)
    assert encoded.tokens.shape[1] == model.evidence_tokens
    assert not torch.allclose(encoded.logits[0], encoded.logits[1]), "z has the vitals in every case"
    model(**Collator(model.prompt)([{**example, "report": "Normal."} for example in examples])).loss.backward()


@pytest.mark.parametrize("training", [True, False])
def test_the_words_that_all_share_are_read_once_and_change_nothing(tiny_model, tiny_batch, training: bool) -> None:
    """Losses and every gradient are those of reading them for each case."""
    with torch.no_grad():
        for name, value in tiny_model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.3)
    tiny_model.train(training)
    assert tiny_model.prompt.fixed_tokens > 3

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tiny_model.zero_grad()
        output = tiny_model(**tiny_batch)
        output.loss.backward()
        grads = {n: p.grad.clone() for n, p in tiny_model.trainable_parameters().items() if p.grad is not None}
        return output.case_losses.detach(), grads

    shared, gradients = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClinicalVLM, "_can_reuse_prefix", False)
        plain, wanted = run()
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == wanted.keys() and any("lora_A" in name for name in wanted)
    for name in wanted:
        torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_what_must_differ_from_case_to_case_is_not_shared(tiny_model) -> None:
    llm = replace(tiny_model.model_config.llm, lora_dropout=0.1)
    tiny_model.model_config = replace(tiny_model.model_config, llm=llm)
    assert not tiny_model.train()._can_reuse_prefix and tiny_model.eval()._can_reuse_prefix


@pytest.mark.parametrize("share", [True, False])
def test_cases_of_like_length_run_together_and_give_what_one_pass_gives(tiny_model, monkeypatch, share: bool) -> None:
    from vlm.model import decoder as trunk

    model, shared = tiny_model.base.base_model, 3 if share else 0
    lengths = [30, 5, 29, 6, 31, 7]
    mask = (torch.arange(31) < torch.tensor(lengths)[:, None]).long()
    embeddings = torch.randn(6, 31, 64)
    embeddings[:, :3] = embeddings[0, :3]
    embeddings.requires_grad_(True)
    weight = torch.randn(6, 31, 64) * mask[..., None]

    def run(cost: int) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(trunk.length_groups, "__defaults__", (cost,))
        hidden = trunk.decoder_forward(model, embeddings, mask, shared, one_pass=False)
        (gradient,) = torch.autograd.grad((hidden * weight).sum(), embeddings)
        return hidden * mask[..., None], gradient

    assert len(trunk.length_groups(lengths, 1)) > 1 and len(trunk.length_groups(lengths, 10_000)) == 1
    torch.testing.assert_close(run(1), run(10_000), rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 60))
def test_no_other_groups_by_length_cost_less(lengths: list[int], cost: int) -> None:
    from vlm.model.decoder import length_groups

    def price(groups: list[list[int]]) -> int:
        return sum(cost + max(lengths[row] for row in rows) * len(rows) for rows in groups)

    def partitions(rows: list[int]) -> Iterator[list[list[int]]]:
        if not rows:
            yield []
            return
        for rest in partitions(rows[1:]):
            yield [[rows[0]], *rest]
            for place in range(len(rest)):
                yield [*rest[:place], [rows[0], *rest[place]], *rest[place + 1 :]]

    groups = length_groups(lengths, cost)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    assert price(groups) == min(price(other) for other in partitions(list(range(len(lengths)))))
