"""Encode image and vitals into evidence tokens, z and label logits: all of the model but the language model.

It can be used alone where another engine runs the language model, and loads in a fraction of the time.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from vlm.config import ModelConfig
from vlm.data.case import CaseSpec
from vlm.data.chat_template import PromptIds
from vlm.data.collate import Batch, evidence_of
from vlm.data.prompt import Prompt
from vlm.errors import UserError
from vlm.model.calibration import Calibration
from vlm.model.embedding_space import EmbeddingSpace
from vlm.model.encoders.signal_encoder import SignalEncoder, with_signal
from vlm.model.fusion import EvidenceTokens, JointVector
from vlm.model.study_fusion import ImageTokens
from vlm.model.vision import ImageEncoder
from vlm.model.vitals import VitalsEncoder
from vlm.reliability.familiarity import Familiarity
from vlm.reliability.thresholds import Reliability


@dataclass
class FusedInputs:
    """Hold the evidence tokens for the prompt, z and the label logits."""

    tokens: torch.Tensor
    """Evidence tokens, B × P × H."""
    z: torch.Tensor
    """Joint vector, B × Z."""
    logits: torch.Tensor
    """Label logits, B × K."""
    distance: torch.Tensor
    """Distance of f from those of training, B; NaN if the adapter does not know them."""
    there: torch.Tensor | None = None
    """B × P, bool: False at padding, where cases have unequally many images; else None."""

    def flat(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Return the tokens of some cases one after another, without padding; … × H."""
        tokens = self.tokens[rows]
        return tokens.flatten(0, 1) if self.there is None else tokens[self.there[rows]]


class EvidenceEncoder(nn.Module):
    """Combine image encoder, vitals encoder, joint vector and head with the prompt that holds their tokens."""

    def __init__(
        self,
        config: ModelConfig,
        spec: CaseSpec,
        space: EmbeddingSpace,
        load_vision_weights: bool = True,
        prompt_ids: PromptIds | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.tokenizer, self.space = spec, space.tokenizer, space
        self.calibration, self.reliability = Calibration(), Reliability()
        self.vision = ImageEncoder(
            config.vision, spec.image.size, space.hidden_size, space.rms, load_vision_weights, spec.image.channels,
            spec.study, space.embed_names(spec.study.missing_names()) if spec.study else None, config.projector_size,
        )  # fmt: skip
        self.familiarity = Familiarity(self.vision.summary_size, spec.familiarity)
        self.model_config = replace(config, vision=self.vision.config)  # a repository's encoder by its architecture
        self.vitals = VitalsEncoder(
            config.vitals, spec.schema, spec.statistics, space.embed_names, space.rms, config.projector_size
        )
        self.signal: SignalEncoder | None = None
        if spec.signal is not None:
            self.signal = SignalEncoder(
                config.signal, spec.signal, space.embed_names, space.hidden_size, space.rms, config.projector_size
            )
        x_size = self.vitals.size + (self.signal.size if self.signal else 0)
        self.joint = JointVector(config.fusion, self.vision.summary_size, x_size, len(spec.labels))
        self.evidence = EvidenceTokens(
            config.fusion, spec.labels, spec.study.expected if spec.study else (), space.embed_names, space.rms,
            config.projector_size,
        )  # fmt: skip
        last = max((number for ids in prompt_ids or () for number in ids), default=0)
        if space.vocabulary is not None and last >= space.vocabulary:
            raise UserError(f"prompt_ids: {last} is no token of the base, which has {space.vocabulary:,}")
        written = spec.schema if config.vitals.injection == "text" else None
        self.prompt = Prompt(
            space.tokenizer, config.prompt, self.evidence_tokens, written, prompt_ids, space.context_length,
            config.vision.grid**2, spec.study,
        )  # fmt: skip

    @property
    def evidence_tokens(self) -> int:
        """P, the number of evidence tokens in the prompt of a case with one image and no role missing."""
        signal = self.signal.tokens if self.signal else 0
        return self.model_config.vision.grid**2 + self.vitals.tokens + signal + self.evidence.tokens

    @property
    def device(self) -> torch.device:
        return self.vision.missing.device

    def encode(
        self,
        pixel_values: torch.Tensor,
        has_image: torch.Tensor,
        vitals: torch.Tensor,
        image_roles: torch.Tensor | None = None,
        signals: torch.Tensor | None = None,
    ) -> FusedInputs:
        """Encode images, vitals and signals into evidence tokens, z and logits.

        `pixel_values` is N × 3 × S × S, the images of all cases in turn, `image_roles` N × 4 (see `Batch`), `has_image`
        B, `vitals` B × m with NaN where missing, `signals` B × C × L. A model of one image needs no roles.
        """
        clinical = with_signal(self.vitals(vitals), self.signal, signals)
        return self.fuse(self.vision(pixel_values, has_image, image_roles), clinical)

    def fuse(self, image: ImageTokens, vitals: tuple[torch.Tensor, torch.Tensor], whole: bool = False) -> FusedInputs:
        """Fuse image tokens and f with vitals and signal tokens and x into evidence tokens, z and logits.

        The label token takes the head's logits detached, so that the text loss does not distort the head's
        calibration. With `whole` the gradient goes through them too: an attribution follows every path to the text.
        """
        vitals_tokens, x = vitals  # B × n × H, B × X
        with torch.autocast(x.device.type, enabled=False):  # in bf16 a logit near 4 moves in steps of 0.03
            z, logits = self.joint(image.f.float(), x.float())  # B × Z, B × K
            distance = self.familiarity(image.f.float())  # B
        shown = self.evidence(z, logits if whole else logits.detach(), image.lacking)
        rest = [*([vitals_tokens] if vitals_tokens.shape[1] else []), *shown]
        tokens = torch.cat([part.to(image.tokens.dtype) for part in (image.tokens, *rest)], dim=1)
        there = image.there
        if there is not None:
            there = nn.functional.pad(there, (0, tokens.shape[1] - there.shape[1]), value=True)
        return FusedInputs(tokens, z, logits, distance, there)

    def embed_prompt(self, batch: Batch) -> tuple[torch.Tensor, FusedInputs]:
        """Encode the evidence of a batch and embed its prompts; returns B × T × H and the evidence."""
        fused = self.encode(**evidence_of(batch))
        return self.embed(batch["input_ids"], batch["evidence_mask"], fused.flat()), fused

    def embed(self, input_ids: torch.Tensor, evidence_mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Embed the prompt with the evidence tokens in their places; B × T, B × T, … × H in turn → B × T × H."""
        words = self.space.embed(input_ids)
        return words.masked_scatter(evidence_mask[..., None], tokens.to(words.dtype))
