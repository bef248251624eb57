"""Which engine drafts: PyTorch, which batches and runs on a GPU, or llama.cpp, which is quick for one case on a CPU."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from vlm.adapter import digest
from vlm.data.case import Example
from vlm.inference.engine import ReportEngine
from vlm.inference.gguf_file import merged_gguf
from vlm.inference.llamacpp import LlamaCpp
from vlm.model.clinical_vlm import ClinicalVLM


def make_engine(name: str, model: ClinicalVLM, adapter: Path) -> ReportEngine:
    """`torch` or `llamacpp`; raises `UserError` where the latter cannot serve this base or is not installed."""
    return LlamaCppEngine(model, adapter) if name == "llamacpp" else ReportEngine(model)


class LlamaCppEngine(ReportEngine):
    """Image, vitals and head as ever; the language model is llama.cpp's, on the merged weights in 8 bits."""

    def __init__(self, model: ClinicalVLM, adapter: Path) -> None:
        super().__init__(model)
        self.llama = LlamaCpp(merged_gguf(model, digest(adapter)), torch.get_num_threads())

    @torch.no_grad()
    def draft(
        self, examples: Iterable[Example], batch_size: int = 1, max_new_tokens: int = 96, **options: Any
    ) -> Iterator[tuple[str, dict[str, float]]]:
        """Draft prepared examples one after another; yields (report, label → probability). Takes a `streamer`."""
        streamer, model = options.get("streamer"), self.model
        for example in examples:
            batch = self.to_device(self.collate([example]))
            encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
            prompt = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)[0]  # T × H
            fixed = int(batch["evidence_mask"][0].int().argmax())  # what stands before the evidence
            tokens = []
            for token in self.llama.generate(prompt.float().numpy(), fixed, max_new_tokens, model.prompt.end_id):
                tokens.append(token)
                if streamer is not None:
                    streamer.put(torch.tensor([token]))
            if streamer is not None:
                streamer.end()
            text = str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            probabilities = model.calibration.probabilities(encoded.logits.float())[0].tolist()
            yield text, dict(zip(model.spec.labels, probabilities, strict=True))
