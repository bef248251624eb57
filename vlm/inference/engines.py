"""Which engine drafts: PyTorch, which batches and runs on a GPU, or llama.cpp, which is quick for one case on a CPU."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from vlm.adapter import load_evidence
from vlm.data.case import Example
from vlm.errors import UserError
from vlm.inference.engine import Engine
from vlm.inference.llamacpp import LlamaCpp
from vlm.inference.merged_base import MergedBase
from vlm.model.evidence import EvidenceEncoder


def make_engine(name: str, adapter: Path, base: str | None = None) -> Engine:
    """`torch` or `llamacpp`, on the adapter in a folder.

    Raises `UserError` as `vlm.adapter.load` does, and where llama.cpp cannot serve the base or is not installed.
    """
    if name == "llamacpp":
        if base is not None:
            raise UserError("--base: --engine llamacpp takes the base that the adapter names; leave one of them away")
        merged = MergedBase.of(adapter)
        return LlamaCppEngine(load_evidence(adapter, merged.words()), merged.file)
    from vlm.adapter import load
    from vlm.inference.engine import ReportEngine

    return ReportEngine(load(adapter, base=base))


class LlamaCppEngine(Engine):
    """Image, vitals and head as ever; the language model is llama.cpp's, on the merged weights in 8 bits."""

    def __init__(self, model: EvidenceEncoder, file: Path) -> None:
        super().__init__(model)
        self.llama = LlamaCpp(file, torch.get_num_threads())

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
            tokens = []
            for token in self.llama.generate(
                prompt.float().numpy(), model.prompt.fixed_tokens, max_new_tokens, model.prompt.end_id
            ):
                tokens.append(token)
                if streamer is not None:
                    streamer.put(torch.tensor([token]))
            if streamer is not None:
                streamer.end()
            text = str(model.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            probabilities = model.calibration.probabilities(encoded.logits.float())[0].tolist()
            yield text, dict(zip(model.spec.labels, probabilities, strict=True))
