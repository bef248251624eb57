"""The small parts of the model, each against its formula."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from vlm.config import FusionConfig, LLMConfig, VitalConfig
from vlm.errors import UserError
from vlm.model.bases.base_files import _header, base_digest, weight_files
from vlm.model.bases.quantization import choose_dequantization
from vlm.model.calibration import Calibration
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.fusion import EvidenceTokens, JointVector
from vlm.model.llm import context_length, embedding_rms, embedding_scale, fingerprint
from vlm.model.loss import LossSum
from vlm.model.projection import NamedProjector, TokenProjector
from vlm.model.vitals import CLIP, VitalFeatures, pressure_state
from vlm.plain import telling_words

NAN = float("nan")


def test_a_projected_token_has_the_size_of_a_word() -> None:
    torch.manual_seed(0)
    tokens = TokenProjector(5, 64, 0.3)(100 * torch.randn(2, 7, 5))
    assert tokens.shape == (2, 7, 64)
    torch.testing.assert_close(tokens.pow(2).mean(-1).sqrt(), torch.full((2, 7), 0.3), rtol=1e-3, atol=1e-4)


def test_a_named_token_starts_as_the_words_of_its_states() -> None:
    torch.manual_seed(0)
    names = torch.randn(3, 64)
    projector, states = NamedProjector(4, names, 0.2), torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    unit = names / names.pow(2).mean().sqrt()
    wanted = 0.2 * F.layer_norm(torch.stack([unit[0], (unit[1] + unit[2]) / 2]), (64,))
    torch.testing.assert_close(projector(states, torch.randn(2, 4)), wanted, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        projector.mlp[-1].bias.fill_(1).mul_(torch.arange(64))
    assert not torch.allclose(projector(states, torch.randn(2, 4)), wanted, atol=1e-2), "and learns beside them"


def test_a_narrow_projector_has_few_weights_and_the_same_tokens() -> None:
    torch.manual_seed(0)
    wide, narrow = TokenProjector(5, 64, 0.3), TokenProjector(5, 64, 0.3, width=4)
    weights = [sum(p.numel() for p in projector.mlp.parameters()) for projector in (wide, narrow)]
    assert weights == [2 * 5 + (5 + 1) * 64 + (64 + 1) * 64, 2 * 5 + (5 + 1) * 4 + (4 + 1) * 64]
    size = narrow(torch.randn(3, 5)).pow(2).mean(-1).sqrt()
    torch.testing.assert_close(size, torch.full((3,), 0.3), rtol=1e-3, atol=1e-4)
    named = NamedProjector(4, torch.randn(3, 64), 0.2, width=4)
    assert [layer.weight.shape for layer in (named.mlp[0], named.mlp[-1])] == [(4, 4), (64, 4)]


def test_a_name_is_the_mean_of_its_words(tiny_model: ClinicalVLM) -> None:
    space = tiny_model.space
    ids = space.tokenizer(" right lung", add_special_tokens=False)["input_ids"]
    table = tiny_model.base.get_input_embeddings().weight.detach()
    assert len(ids) > 1
    embedded = space.embed_names(["right_lung", "left"])
    assert embedded.shape == (2, 64) and embedded.dtype == torch.float32
    torch.testing.assert_close(embedded[0], table[ids].mean(0))
    assert space.embed_names([]).shape == (0, 64)


def test_the_features_of_a_number() -> None:
    vital = VitalFeatures(VitalConfig("g", reference=[4.0, 8.0]), 6.0, 2.0, (2.0, 5.0, 9.0))
    values = torch.tensor([3.0, 4.0, 8.0, 8.1, 7.0, 1e6, -1e6, NAN])
    with torch.no_grad():
        vital.missing.copy_(torch.tensor([7.0, 8.0, 9.0]))
        features, states = vital(values)
    assert vital.names == ["g not measured", "g low", "g normal", "g elevated"] and vital.size == 3
    assert states.argmax(1).tolist() == [1, 2, 2, 3, 2, 3, 1, 0] and (states.sum(1) == 1).all()
    wanted = [[-1.5, 1 / 3, 0], [-1, 2 / 3, 0], [1, 1, 0.75], [1.05, 1, 0.775], [0.5, 1, 0.5], [CLIP, 1, 1],
              [-CLIP, 0, 0], [7, 8, 9]]  # fmt: skip
    torch.testing.assert_close(features, torch.tensor(wanted))
    assert CLIP == 5


def test_the_states_of_a_number_without_a_range_and_of_a_category() -> None:
    plain = VitalFeatures(VitalConfig("g"), 0.0, 1.0, (0.0, 1.0))
    assert plain.names == ["g not measured", "g given"]
    assert plain(torch.tensor([-9.0, 9.0, NAN]))[1].argmax(1).tolist() == [1, 1, 0]
    sex = VitalFeatures(VitalConfig("sex", categories=["F", "M"]), 0.0, 1.0, ())
    features, states = sex(torch.tensor([0.0, 1.0, NAN]))
    assert sex.names == ["sex not measured", "sex F", "sex M"]
    assert features.shape == (3, 0) and states.argmax(1).tolist() == [1, 2, 0]


def test_a_pressure_between_two_states_stays_a_share() -> None:
    """An attribution goes along a path between states: shares add up to one on all of it."""
    rng = torch.Generator().manual_seed(0)
    systolic, diastolic = (torch.rand(20, 4, generator=rng).softmax(1) for _ in range(2))
    state = pressure_state(systolic, diastolic)
    torch.testing.assert_close(state.sum(1), torch.ones(20))


def test_z_and_the_verdicts_are_the_tokens_in_this_order() -> None:
    torch.manual_seed(0)
    evidence = evidence_tokens(FusionConfig(size=6, sharpness=3.0), ["cough", "fever"])
    z, logits = torch.randn(4, 6), torch.randn(4, 2)
    first, second = evidence(z, logits)
    assert evidence.tokens == 2
    torch.testing.assert_close(first[:, 0], evidence.z_projector(z))
    torch.testing.assert_close(second[:, 0], evidence.label_projector(torch.sigmoid(3 * logits), torch.sigmoid(logits)))
    for config in (FusionConfig(size=6), FusionConfig(size=6, label_words=True)):
        assert evidence_tokens(config, []).tokens == 1, "no label, no token of labels"


WORDS = {"no": 0.0, "unknown": -1.0, "new": 1.0, "larger": 2.0, "smaller": 3.0, "fever": 4.0}


def evidence_tokens(config: FusionConfig, labels: list[str], roles: tuple[str, ...] = ()) -> EvidenceTokens:
    return EvidenceTokens(config, labels, roles, embed, 0.1)


def embed(names: Sequence[str]) -> torch.Tensor:
    """Give each word a vector of one number; S × 32."""
    return torch.tensor([WORDS.get(name, 9.0) for name in names])[:, None].expand(-1, 32).contiguous()


def test_a_label_begins_as_the_words_that_tell_it_from_the_others() -> None:
    labels = ["pathology", "mild_opacity", "right_lung", "left_lung", "irregular_outline", "slightly_irregular_outline"]
    assert telling_words(labels) == ["pathology", "mild_opacity", "right", "left", "irregular_outline", "slightly"]
    assert telling_words([]) == [] and telling_words(["cough", "cough"]) == ["cough", "cough"]
    for words in (False, True):
        evidence = evidence_tokens(FusionConfig(size=6, label_words=words), ["new_lung", "larger_lung"])
        names = (evidence.label_words.words.names[1:] if words else evidence.label_projector.names).detach()
        assert (names[1] / names[0])[0] == pytest.approx(WORDS["larger"] / WORDS["new"])


def test_each_label_is_its_name_or_no() -> None:
    evidence = evidence_tokens(FusionConfig(size=6, z_token=False, label_words=True), ["new", "larger"])
    (tokens,) = evidence(torch.randn(2, 6), torch.tensor([[20.0, -20.0], [0.0, 20.0]]))
    assert evidence.tokens == 2
    torch.testing.assert_close(tokens[..., 0], torch.tensor([[1.0, 0.0], [0.5, 2.0]]))
    tokens.sum().backward()
    assert evidence.label_words.words.names.grad.abs().sum() > 0


def test_of_labels_that_exclude_each_other_the_likeliest_is_shown() -> None:
    config = FusionConfig(size=6, z_token=False, label_words=True, sharpness=30.0, exclusive=[["smaller", "new"]])
    evidence = evidence_tokens(config, ["new", "larger", "smaller"])
    p = torch.tensor([[0.2, 0.4, 0.45], [0.4, 0.1, 0.3], [0.2, 0.9, 0.1]])  # chance for one of two: 1 / 3
    (tokens,) = evidence(torch.zeros(3, 6), p.logit())
    torch.testing.assert_close(tokens[..., 0], torch.tensor([[0.0, 0, 3], [1, 0, 0], [0, 2, 0]]), atol=0.01, rtol=0)


def test_a_label_that_is_worst_to_miss_is_named_sooner() -> None:
    """At a third of the probability where its cost is three, alone and in a group; in drafting, not in training."""
    costs = {"new": 3.0, "fever": 3.0}
    config = FusionConfig(
        size=6, z_token=False, label_words=True, sharpness=30.0, exclusive=[["smaller", "new"]], miss_costs=costs
    )
    evidence = evidence_tokens(config, ["new", "larger", "smaller", "fever"]).eval()
    odds = torch.tensor([[0.4, 0.9, 1.0, 0.4], [0.3, 0.9, 1.0, 0.3]])  # 3 · 0.4 is above 1, 3 · 0.3 below
    (tokens,) = evidence(torch.zeros(2, 6), odds.log())
    torch.testing.assert_close(tokens[..., 0], torch.tensor([[1.0, 0, 0, 4], [0, 0, 3, 0]]), atol=0.2, rtol=0)
    (tokens,) = evidence.train()(torch.zeros(2, 6), odds.log())
    torch.testing.assert_close(tokens[..., 0], torch.tensor([[0.0, 0, 3, 0], [0, 0, 3, 0]]), atol=0.2, rtol=0)


def test_a_label_without_its_image_is_unknown() -> None:
    needs = {"new": ["prior"], "fever": ["lateral", "prior"]}
    config = FusionConfig(size=6, z_token=False, label_words=True, label_evidence=needs)
    evidence = evidence_tokens(config, ["new", "larger", "fever"], ("lateral", "prior"))
    lacking = torch.tensor([[False, False], [True, False], [False, True]])
    (tokens,) = evidence(torch.zeros(3, 6), torch.full((3, 3), 20.0), lacking)
    assert tokens[..., 0].round().tolist() == [[1, 2, 4], [1, 2, -1], [-1, 2, -1]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"exclusive": [["new", "old"]]}, r"model.fusion.exclusive: 'old' is none of new, larger"),
        ({"miss_costs": {"old": 2.0}}, r"model.fusion.miss_costs: 'old' is none of new, larger"),
        ({"label_evidence": {"old": ["prior"]}}, r"model.fusion.label_evidence: 'old' is none of new, larger"),
        ({"label_evidence": {"new": ["AP"]}}, r"model.fusion.label_evidence.new: 'AP' is none of prior"),
    ],
)
def test_another_label_or_role_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        evidence_tokens(FusionConfig(label_words=True, **options), ["new", "larger"], ("prior",))


def test_without_vitals_z_is_of_the_image_alone() -> None:
    torch.manual_seed(0)
    joint = JointVector(FusionConfig(size=6), 3, 0, 0)
    f = torch.randn(2, 3)
    z, logits = joint(f, torch.zeros(2, 0))
    torch.testing.assert_close(z, joint.from_image(f))
    assert logits.shape == (2, 0)


def test_places_of_the_image_keep_their_order(tiny_model: ClinicalVLM) -> None:
    """Row by row from the top left; f is the mean of all of it, channel by channel."""
    grid = torch.zeros(1, 3, 2, 2)
    grid[0, 1, 0, 1], grid[0, 2, 1, 0] = 4.0, 8.0
    pooled = tiny_model.vision.pool(grid)[0]
    assert tiny_model.vision.config.grid == 2 and pooled.shape == (5, 3)
    assert pooled.tolist() == [[0, 0, 0], [0, 4, 0], [0, 0, 8], [0, 0, 0], [0, 1, 2]]


def test_lora_is_scaled_by_alpha_over_rank(tiny_model: ClinicalVLM) -> None:
    config = tiny_model.model_config.llm
    layers = [module for module in tiny_model.llm.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling")]
    assert len(layers) == 2 * len(config.lora_targets)
    assert all(layer.scaling["default"] == config.lora_alpha / config.lora_rank == 8 for layer in layers)


def test_the_size_of_words(tiny_model: ClinicalVLM) -> None:
    table = tiny_model.base.get_input_embeddings().weight
    assert embedding_scale(tiny_model.base) == 1
    assert embedding_rms(tiny_model.base) == pytest.approx(float(table.pow(2).mean().sqrt()), rel=1e-4)
    before = fingerprint(tiny_model.base)
    assert len(before) == 16 and before == fingerprint(tiny_model.base)
    with torch.no_grad():
        table[0].mul_(2)
    assert fingerprint(tiny_model.base) != before


@pytest.mark.parametrize(
    ("change", "device", "unpacked"),
    [({}, "cpu", True), ({}, "cuda", False), ({"dequantize": "never"}, "cpu", False),
     ({"dequantize": "always"}, "cuda", True),
     ({"quantization": "none"}, "cpu", False), ({"quantization": "none", "dequantize": "always"}, "cpu", False)],
)  # fmt: skip
def test_4_bit_values_are_unpacked_on_a_cpu(change: dict, device: str, unpacked: bool) -> None:
    assert choose_dequantization(LLMConfig(**change), torch.device(device)).value == unpacked


def test_a_mean_over_the_count_of_a_larger_batch() -> None:
    loss = LossSum(torch.tensor(6.0), torch.tensor(3))
    assert (
        loss.mean() == 2
        and loss.mean(torch.tensor(12)) == 0.5
        and LossSum(torch.tensor(0.0), torch.tensor(0)).mean() == 0
    )


@pytest.mark.parametrize("values", [(0.0, 0, 0), (NAN, 0, 0), (1e5, 0, 0), (-1.0, 0, 0), (1.0, -1, 0), (1.0, 0, -1)])
def test_a_calibration_that_is_none_is_refused(values: tuple) -> None:
    with pytest.raises(UserError, match="calibration: temperature"):
        Calibration(*values)
    assert Calibration(1e-4).temperature == 1e-4 and Calibration(1e4).temperature == 1e4
    with pytest.raises(FrozenInstanceError):
        Calibration().temperature = 0.0  # type: ignore[misc]
    assert Calibration(2.0, 12, 15).describe() == "probabilities calibrated on 12 patients who were not trained on"
    np.testing.assert_allclose(Calibration(1e4).probabilities(torch.tensor([1e4])), [1 / (1 + np.exp(-1))], rtol=1e-5)


def test_a_base_in_a_folder_has_no_commit_and_a_digest_of_its_tensors(tiny_model: ClinicalVLM, tmp_path: Path) -> None:
    assert tiny_model.base.commit is None
    assert tiny_model.base_sha256 == base_digest(tiny_model.model_config.llm.base, None)
    tensors = {"a": torch.arange(6, dtype=torch.float16).reshape(2, 3), "b": torch.ones(1)}  # saved in another order
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    listed = [("a", "F16", [2, 3], tensors["a"]), ("b", "F32", [1], tensors["b"])]
    entries = [(*entry, hashlib.sha256(value.numpy().tobytes()).hexdigest()) for *entry, value in listed]
    assert base_digest(str(tmp_path), None) == hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def test_the_files_of_a_base_are_those_of_its_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it has no model\.safetensors"):
        weight_files(str(tmp_path), None)
    names = {"x": "two.safetensors", "y": "one.safetensors", "z": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "one.safetensors").touch()
    with pytest.raises(ValueError, match=r"two\.safetensors is missing, which its index names"):
        weight_files(str(tmp_path), None)
    (tmp_path / "two.safetensors").touch()
    assert [file.name for file in weight_files(str(tmp_path), None)] == ["one.safetensors", "two.safetensors"]
    (tmp_path / "model.safetensors").touch()
    assert weight_files(str(tmp_path), None) == [tmp_path / "model.safetensors"]
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="so it is an adapter and no base"):
        weight_files(str(tmp_path), None)


def test_the_header_of_a_base_fits_its_file() -> None:
    def file(header: bytes, values: bytes = b"", length: int | None = None) -> memoryview:
        return memoryview((len(header) if length is None else length).to_bytes(8, "little") + header + values)

    one = b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"__metadata__":{"format":"pt"}}'
    header, start = _header(file(one, b"abc"), "x")
    assert header == {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}} and start == 8 + len(one)
    assert _header(file(b"{}"), "x") == ({}, 10)
    for broken in (memoryview(b"1234567"), file(b"{", length=1), file(b"{}", length=3)):
        with pytest.raises(ValueError, match="x is no whole safetensors file; fetch it again"):
            _header(broken, "x")
    with pytest.raises(ValueError, match=f"x has {len(one) + 10} bytes, .* {len(one) + 11}; it was cut off, fetch"):
        _header(file(one, b"ab"), "x")
    with pytest.raises(ValueError, match=f"x has {len(one) + 12} bytes, .* {len(one) + 11}; fetch it again"):
        _header(file(one, b"abcd"), "x")


@pytest.mark.parametrize(
    ("values", "length"),
    [({"max_position_embeddings": 1}, 1), ({"max_position_embeddings": 0, "n_positions": 9}, 9), ({}, None),
     ({"max_position_embeddings": None, "max_seq_len": 7, "n_positions": 9}, 7), ({"n_positions": 2.5}, None)],
)  # fmt: skip
def test_the_length_that_a_base_was_made_to_read(values: dict, length: int | None) -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**values))
    assert context_length(SimpleNamespace(config=config)) == length
