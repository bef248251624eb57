"""Image and vitals → evidence tokens, z and the labels' probabilities: all of the model but the language model.

It stands alone where another engine runs the language model, and starts in a fraction of the time.
"""

from dataclasses import dataclass

import torch
from torch import nn

from vlm.config import ModelConfig
from vlm.data.case import CaseSpec
from vlm.data.chat_template import PromptIds
from vlm.data.prompt import Prompt
from vlm.errors import UserError
from vlm.model.calibration import Calibration
from vlm.model.embedding_space import EmbeddingSpace
from vlm.model.fusion import EvidenceTokens, JointVector
from vlm.model.vision import ImageEncoder
from vlm.model.vitals import VitalsEncoder


@dataclass
class Encoded:
    """What image and vitals say, ready for the prompt."""

    tokens: torch.Tensor
    """B × P × H."""
    z: torch.Tensor
    """B × Z."""
    logits: torch.Tensor
    """B × K."""


class EvidenceEncoder(nn.Module):
    """Image encoder, vitals encoder, joint vector, head, and the prompt that their tokens stand in."""

    def __init__(
        self,
        config: ModelConfig,
        spec: CaseSpec,
        space: EmbeddingSpace,
        load_vision_weights: bool = True,
        prompt_ids: PromptIds | None = None,
    ) -> None:
        super().__init__()
        self.model_config, self.spec, self.tokenizer, self.space = config, spec, space.tokenizer, space
        self.calibration = Calibration()
        self.vision = ImageEncoder(config.vision, spec.image.size, space.hidden_size, space.rms, load_vision_weights)
        self.vitals = VitalsEncoder(config.vitals, spec.schema, spec.statistics, space.embed_names, space.rms)
        self.joint = JointVector(config.fusion, self.vision.summary_size, self.vitals.size, len(spec.labels))
        self.evidence = EvidenceTokens(config.fusion, space.embed_names(spec.labels), space.rms)
        last = max((number for ids in prompt_ids or () for number in ids), default=0)
        if space.vocabulary is not None and last >= space.vocabulary:
            raise UserError(f"prompt_ids: {last} is no token of the base, which has {space.vocabulary:,}")
        written = spec.schema if config.vitals.injection == "text" else None
        self.prompt = Prompt(
            space.tokenizer, config.prompt, self.evidence_tokens, written, prompt_ids, space.context_length
        )

    @property
    def evidence_tokens(self) -> int:
        """P, the number of evidence tokens in every prompt."""
        return self.model_config.vision.grid**2 + self.vitals.tokens + self.evidence.tokens

    @property
    def device(self) -> torch.device:
        return self.vision.missing.device

    def encode(self, pixel_values: torch.Tensor, has_image: torch.Tensor, vitals: torch.Tensor) -> Encoded:
        """Image (B × 3 × S × S), its presence (B) and vitals (B × m, NaN missing) → evidence tokens, z, logits."""
        return self.fuse(self.vision(pixel_values, has_image), self.vitals(vitals))

    def fuse(
        self, image: tuple[torch.Tensor, torch.Tensor], vitals: tuple[torch.Tensor, torch.Tensor], whole: bool = False
    ) -> Encoded:
        """Image tokens and f, vitals tokens and x → evidence tokens, z, logits.

        The label token takes the head's logits without gradient: the text loss must not bend what the head is asked
        to calibrate. With `whole` the gradient goes through them too: an attribution follows every path to the text.
        """
        (image_tokens, f), (vitals_tokens, x) = image, vitals  # B × g·g × H, B × F; B × n × H, B × X
        with torch.autocast(f.device.type, enabled=False):  # in bf16 a logit near 4 moves in steps of 0.03
            z, logits = self.joint(f.float(), x.float())  # B × Z, B × K
        shown = self.evidence(z, logits if whole else logits.detach())
        parts = [image_tokens, *([vitals_tokens] if self.vitals.tokens else []), *shown]
        return Encoded(torch.cat([part.to(image_tokens.dtype) for part in parts], dim=1), z, logits)

    def embed(self, input_ids: torch.Tensor, evidence_mask: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Word embeddings with the evidence tokens in their places; B × T, B × T, B × P × H → B × T × H."""
        words = self.space.embed(input_ids)
        return words.masked_scatter(evidence_mask[..., None], tokens.to(words.dtype))
