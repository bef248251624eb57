"""The model's contract: equations by hand, gradients where they belong, missing inputs, generation."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import public
from tests.rebuilt import rebuild
from vlm.config import Config, FusionConfig
from vlm.data.case import make_example
from vlm.data.collate import IGNORED, Collator
from vlm.data.study import StudyPicture
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.self_test import self_test


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
    together, fused = tiny_model.generate(collate(cases), 12, min_new_tokens=12)
    for number, case in enumerate(cases):
        alone, row = tiny_model.generate(collate([case]), 12, min_new_tokens=12)
        assert alone[0] == together[number]
        torch.testing.assert_close(row.logits[0], fused.logits[number], rtol=1e-4, atol=1e-5)
    assert len(set(together)) > 1


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
