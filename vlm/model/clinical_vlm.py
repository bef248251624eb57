"""The whole model, composed: image and vitals beside the words of a frozen language model.

T = LLM([f, x]), equation (2): evidence tokens made from f and x stand in the prompt, and the language model
goes on from there. The same f and x make z and the labels' probabilities.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation import BaseStreamer

from vlm.config import ModelConfig
from vlm.data.case import CaseSpec
from vlm.data.chat_template import PromptIds
from vlm.data.collate import Batch
from vlm.device import choose_device, choose_precision
from vlm.errors import one_line
from vlm.model.decoder import decoder_forward
from vlm.model.evidence import EvidenceEncoder
from vlm.model.llm import embedding_space, fingerprint, load_llm, refuse_unquantised, word_embeddings
from vlm.model.lora import add_lora, fit_targets
from vlm.model.loss import joint_loss, label_loss, rows_with_text, text_loss


class VLMOutput(NamedTuple):
    """Losses as scalars, and what each case contributed."""

    loss: torch.Tensor
    loss_bce: torch.Tensor
    loss_ce: torch.Tensor
    logits: torch.Tensor
    """B × K."""
    case_losses: torch.Tensor
    """B, text loss summed over a case's report."""
    case_tokens: torch.Tensor
    """B, number of those tokens."""


class ClinicalVLM(EvidenceEncoder):
    """Frozen LLM with LoRA, image encoder, vitals encoder, joint vector and head.

    Build it with `from_config`; `vlm.ClinicalVLM` loads, shares and drafts as well. Only the LLM is wrapped by PEFT;
    everything else that trains is declared here.
    """

    def __init__(
        self,
        config: ModelConfig,
        spec: CaseSpec,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        load_vision_weights: bool = True,
        prompt_ids: PromptIds | None = None,
    ) -> None:
        commit = getattr(llm, "commit", None)
        if commit:  # whatever branch of the Hub was asked for: its content may change
            config = replace(config, llm=replace(config.llm, revision=commit))
        with one_line(f"model.llm.base: {config.llm.base} cannot be used"):
            space, sample = embedding_space(llm, tokenizer), fingerprint(llm)
        super().__init__(config, spec, space, load_vision_weights, prompt_ids)
        self.base_fingerprint, self.base_sha256 = sample, getattr(llm, "sha256", None)
        self.base_settings_sha256 = getattr(llm, "settings_sha256", None)
        self.llm = add_lora(llm, config.llm)
        self.sharded = False
        """Whether several processes hold the frozen base together: then all must make the same passes through it."""

    # ------------------------------------------------------------------------------------ building

    @classmethod
    def from_config(
        cls, config: ModelConfig, spec: CaseSpec, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "ClinicalVLM":
        """A new model with fresh adapter weights, on `device` with the frozen LLM in `dtype`.

        Raises `UserError` for base weights that cannot be loaded or not be put in 4 bits, and for LoRA on layers that
        the base has not.
        """
        device = device or choose_device().value
        llm, tokenizer = load_llm(config.llm, device, dtype or choose_precision("auto", device).value)
        refuse_unquantised(llm, config.llm)
        config = replace(config, llm=fit_targets(llm, config.llm))
        return cls(config, spec, llm, tokenizer).to(device)

    # ---------------------------------------------------------------------------------- properties

    @property
    def base(self) -> PreTrainedModel:
        """The language model inside PEFT."""
        return self.llm.get_base_model()  # type: ignore[operator,no-any-return]

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes and an adapter folder holds, by name."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def autocast(self) -> Any:
        """Compute in the precision of the LLM where that is bf16."""
        dtype = word_embeddings(self.base).dtype
        return torch.autocast(self.device.type, dtype) if dtype == torch.bfloat16 else nullcontext()

    # ------------------------------------------------------------------------------------- forward

    def forward(
        self,
        pixel_values: torch.Tensor,
        has_image: torch.Tensor,
        vitals: torch.Tensor,
        targets: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        evidence_mask: torch.Tensor,
        labels: torch.Tensor,
        alpha: float = 0.5,
        label_count: torch.Tensor | None = None,
        token_count: torch.Tensor | None = None,
    ) -> VLMOutput:
        """Both losses in one pass over a `Batch`.

        The counts are those of the whole effective batch when it is accumulated from several; without them the
        losses are means over this one. With alpha = 1 the text has no weight and the LLM does not run.
        """
        encoded = self.encode(pixel_values, has_image, vitals)
        label = label_loss(encoded.logits, targets)
        loss_bce = label.mean(label_count)
        if alpha == 1:
            nothing = torch.zeros(len(vitals), device=vitals.device)
            return VLMOutput(loss_bce, loss_bce, torch.zeros_like(loss_bce), encoded.logits, nothing, nothing)
        rows, length = rows_with_text(labels, attention_mask)
        ids, mask, evidence = input_ids[rows, :length], attention_mask[rows, :length], evidence_mask[rows, :length]
        hidden = self.trunk(self.embed(ids, evidence, encoded.tokens[rows]), mask)
        text, row_losses = text_loss(hidden, self.base.get_output_embeddings().weight, labels[rows, :length])
        case_losses = row_losses.new_zeros(len(labels)).index_copy(0, rows, row_losses)
        loss_ce = text.mean(token_count)
        return VLMOutput(
            loss=joint_loss(alpha, loss_bce, loss_ce),
            loss_bce=loss_bce,
            loss_ce=loss_ce,
            logits=encoded.logits,
            case_losses=case_losses,
            case_tokens=(labels[:, 1:] >= 0).sum(dim=1),
        )

    def trunk(self, embeddings: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The LLM without its vocabulary layer; B × T × H, padded on the right → B × T × H."""
        shared = self.prompt.fixed_tokens if self._can_reuse_prefix else 0
        # A GPU is not filled by smaller passes, and parameters in shards want as many of them on every process.
        one_pass = self.sharded or embeddings.device.type != "cpu"
        return decoder_forward(self.base.base_model, embeddings, attention_mask, shared, one_pass)

    @property
    def _can_reuse_prefix(self) -> bool:
        """Dropout must differ from case to case, recomputed activations allow no cache, and shards want one pass."""
        config = self.model_config.llm
        return not self.sharded and not (self.training and (config.lora_dropout or config.activation_checkpointing))

    # ----------------------------------------------------------------------------------- inference

    @torch.no_grad()
    def prefix_kv_cache(self) -> Cache | None:
        """The keys and values of the words before the evidence, the same for every case; None if there are none.

        They hold for the weights as they are now.
        """
        before, _ = self.prompt.ids()
        if not before:
            return None
        with self.autocast():
            words = torch.tensor([before], device=self.device)
            return self.base.base_model(input_ids=words, use_cache=True).past_key_values  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        max_new_tokens: int = 96,
        fixed: Cache | None = None,
        min_new_tokens: int | None = None,
        streamer: BaseStreamer | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        logits_processor: LogitsProcessorList | None = None,
    ) -> tuple[list[str], torch.Tensor]:
        """Draft greedily from a batch of prompts; returns B reports and the labels' logits (B × K).

        `fixed` is what `prefix_kv_cache` gave; the options after it are those of Transformers' `generate`.
        """
        options: dict[str, Any] = {}
        if fixed is not None:
            read = copy.deepcopy(fixed)
            read.batch_repeat_interleave(len(batch["input_ids"]))
            options["past_key_values"] = read
        with self.autocast():
            encoded = self.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
            ids = self.llm.generate(  # type: ignore[operator]
                inputs_embeds=self.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens),
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                do_sample=False,
                streamer=streamer,
                stopping_criteria=stopping_criteria,
                logits_processor=logits_processor,
                eos_token_id=self.prompt.end_id,
                pad_token_id=self.prompt.pad_id,
                **options,
            )
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts], encoded.logits.float()
