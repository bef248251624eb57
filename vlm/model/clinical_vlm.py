"""Compose the whole model: evidence encoder and frozen language model with LoRA.

T = LLM([f, x]), equation (2): the prompt holds evidence tokens made from f and x, and the language model
generates the report. The same f and x give z and the label probabilities.
"""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation import BaseStreamer

from vlm.compat import cache_argument, cache_of
from vlm.config import ModelConfig
from vlm.data.case import CaseSpec
from vlm.data.chat_template import PromptIds
from vlm.data.collate import Batch
from vlm.device import choose_device, choose_precision
from vlm.errors import one_line
from vlm.model.bases.lora import add_lora
from vlm.model.bases.lora_targets import fit_targets
from vlm.model.bases.prefix_reuse import EVERYWHERE, NOWHERE, choose_prefix_reuse
from vlm.model.bases.quantization import refuse_unquantised
from vlm.model.bases.vocabulary_head import VocabularyHead
from vlm.model.decoder import LONGEST_PACK, decoder_forward, packed_forward
from vlm.model.evidence import EvidenceEncoder, FusedInputs
from vlm.model.llm import embedding_space, fingerprint, load_llm, word_embeddings
from vlm.model.loss import joint_loss, label_loss, rows_with_text, text_loss


class VLMOutput(NamedTuple):
    """Hold the losses as scalars, the logits, and the text loss of each case."""

    loss: torch.Tensor
    loss_bce: torch.Tensor
    loss_ce: torch.Tensor
    logits: torch.Tensor
    """Label logits, B × K."""
    case_losses: torch.Tensor
    """Text loss summed over each case's report, B."""
    case_tokens: torch.Tensor
    """Number of those tokens, B."""


class ClinicalVLM(EvidenceEncoder):
    """Combine a frozen LLM with LoRA, image encoder, vitals encoder, joint vector and head.

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
        if commit:  # pins it, whatever branch was asked for: a branch may change
            config = replace(config, llm=replace(config.llm, revision=commit))
        with one_line(f"model.llm.base: {config.llm.base} cannot be used"):
            space, sample = embedding_space(llm, tokenizer), fingerprint(llm)
            reuse, head = choose_prefix_reuse(llm), VocabularyHead(llm)
        super().__init__(config, spec, space, load_vision_weights, prompt_ids)
        self.base_fingerprint, self.base_sha256 = sample, getattr(llm, "sha256", None)
        self.base_settings_sha256 = getattr(llm, "settings_sha256", None)
        self.llm = add_lora(llm, config.llm)
        self.prefix_reuse, self.vocabulary_head = reuse, head
        self.sharded = False
        """True if the frozen base is sharded over processes: then all must run the same forward passes."""
        self.packing = False
        """True if training runs the cases of a batch in one sequence, without padding."""

    # ------------------------------------------------------------------------------------ building

    @classmethod
    def from_config(
        cls, config: ModelConfig, spec: CaseSpec, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "ClinicalVLM":
        """Build a model with fresh adapter weights, on `device` with the frozen LLM in `dtype`.

        Raises `UserError` for base weights that cannot be loaded or quantised to 4 bits, and for LoRA on layers that
        the base does not have.
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
        """List the trainable parameters by name; an adapter folder holds them."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def autocast(self) -> Any:
        """Autocast to bf16 if the LLM is in bf16; else a null context."""
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
        image_roles: torch.Tensor | None = None,
        signals: torch.Tensor | None = None,
        alpha: float = 0.5,
        label_count: torch.Tensor | None = None,
        token_count: torch.Tensor | None = None,
    ) -> VLMOutput:
        """Compute both losses in one pass over a `Batch`.

        With gradient accumulation the counts are those of the whole effective batch; without them the losses are
        means over this batch. With alpha = 1 the text has no weight and the LLM does not run.
        """
        encoded = self.encode(pixel_values, has_image, vitals, image_roles, signals)
        label = label_loss(encoded.logits, targets)
        loss_bce = label.mean(label_count)
        if alpha == 1:
            nothing = torch.zeros(len(vitals), device=vitals.device)
            return VLMOutput(loss_bce, loss_bce, torch.zeros_like(loss_bce), encoded.logits, nothing, nothing)
        rows, length = rows_with_text(labels, attention_mask)
        ids, mask, evidence = input_ids[rows, :length], attention_mask[rows, :length], evidence_mask[rows, :length]
        hidden = self.trunk(self.embed(ids, evidence, encoded.flat(rows)), mask)
        text, row_losses = text_loss(hidden, self.vocabulary_head, labels[rows, :length])
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
        """Run the LLM without its output layer; B × T × H, right-padded → B × T × H."""
        if self.training and self.packing:
            return self.packed_trunk(embeddings, attention_mask)
        shared = self.prompt.fixed_tokens if self._can_reuse_prefix else 0
        # Smaller passes do not fill a GPU, and sharded parameters need the same number of passes on every process.
        one_pass = self.sharded or embeddings.device.type != "cpu"
        return decoder_forward(self.base.base_model, embeddings, attention_mask, shared, one_pass)

    def packed_trunk(self, embeddings: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Run the LLM as `trunk` does, without padding."""
        varlen = "flash" in str(self.base.config.get_text_config()._attn_implementation)
        longest = None if varlen or self.sharded else LONGEST_PACK
        return packed_forward(self.base.base_model, embeddings, attention_mask, longest)

    @property
    def _can_reuse_prefix(self) -> bool:
        """True if cases may share a prefix KV cache.

        Dropout must differ from case to case, checkpointing allows no cache, and shards need one pass.
        """
        config, possible = self.model_config.llm, self.prefix_reuse.value == EVERYWHERE and not self.sharded
        return possible and not (self.training and (config.lora_dropout or config.activation_checkpointing))

    # ----------------------------------------------------------------------------------- inference

    @torch.no_grad()
    def prefix_kv_cache(self) -> Cache | None:
        """Compute the prefix KV cache of the tokens before the evidence, shared by all cases; None without any.

        It is valid for the current weights only. None as well for a base whose cache cannot be shared.
        """
        before = self.prompt.fixed_ids.before
        if not before or self.prefix_reuse.value == NOWHERE:
            return None
        with self.autocast():
            words = torch.tensor([before], device=self.device)
            return cache_of(self.base.base_model(input_ids=words, use_cache=True))  # type: ignore[no-any-return]

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
    ) -> tuple[list[str], FusedInputs]:
        """Draft greedily from a batch of prompts; returns B reports and the evidence that they rest on.

        `fixed` is the output of `prefix_kv_cache`; the options after it are those of Transformers' `generate`.
        """
        options: dict[str, Any] = {}
        if fixed is not None:
            read = copy.deepcopy(fixed)
            read.batch_repeat_interleave(len(batch["input_ids"]))
            options[cache_argument()] = read
        with self.autocast():
            embeddings, encoded = self.embed_prompt(batch)
            ids = self.llm.generate(  # type: ignore[operator]
                inputs_embeds=embeddings,
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
        return [text.strip() for text in texts], encoded
