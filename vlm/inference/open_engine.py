"""Open the engine that drafts: PyTorch, which batches and runs on a GPU, llama.cpp, which is quick for one case on a
CPU, or a vLLM server, which serves many.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from vlm.adapter import AdapterFolder, check_base, load, load_evidence, open_adapter
from vlm.adapter.export.serving_limits import refuse_unserved
from vlm.adapter.site_calibration import read_site
from vlm.data.case import Example
from vlm.device import choose_device, choose_precision, choose_threads
from vlm.distributed import log_rank0
from vlm.errors import UserError
from vlm.findings.labeller import Labeller
from vlm.inference.backends.llamacpp import LlamaCpp
from vlm.inference.backends.merged_base import MergedBase
from vlm.inference.engine import MAX_SECONDS, Draft, Engine, ReportEngine, batches
from vlm.model.evidence import EvidenceEncoder, FusedInputs

if TYPE_CHECKING:  # only an engine with a server needs its client
    from vlm.inference.backends.vllm import VLLMServer


def open_engine(
    adapter: str | AdapterFolder,
    engine: str = "torch",
    base: str | None = None,
    revision: str | None = None,
    server: "VLLMServer | None" = None,
    max_seconds: float = MAX_SECONDS,
    findings: str | None = None,
    site: str | None = None,
    abstain: bool = False,
    precision: str = "auto",
) -> Engine:
    """Load an adapter folder or Hub id into one of the engines.

    `findings` is the vocabulary of the table of findings, in place of the adapter's; `site` the file of a site's
    recalibration; with `abstain` doubtful drafts are withheld; `precision` is that of PyTorch, as `choose_precision`
    takes it. Raises `UserError` as `load`, `Labeller.load`, `read_site` and `use_abstention` do.
    """
    labeller = Labeller.load(findings) if findings else None  # before the model: a typing error costs no wait
    opened = open_adapter(adapter, revision)
    calibration = read_site(site, opened) if site else None
    drafter = make_engine(engine, opened, base, server, precision)
    if calibration is not None:
        drafter.model.calibration = calibration
    drafter.max_seconds = max_seconds
    if abstain:
        use_abstention(drafter)
    use_vocabulary(drafter, labeller)
    return drafter


def use_vocabulary(engine: Engine, labeller: Labeller | None) -> None:
    """Read the findings of drafts by another vocabulary than the adapter's, if given; note it where there is none."""
    engine.labeller = labeller or engine.labeller
    if not engine.labeller.names:
        log_rank0("note: no table of findings: the adapter was trained with a vocabulary of its own, which it does not "
                  "hold; name the file with --findings")  # fmt: skip


def use_abstention(engine: Engine) -> None:
    """Withhold doubtful drafts; raises `UserError` for an adapter that cannot tell which are."""
    kept = engine.model.reliability
    if kept.sentences is None and not kept.unlike_above:
        raise UserError("--abstain: the adapter keeps no thresholds that tell a doubtful draft; leave it away, or "
                        "train with 20 validation patients or more")  # fmt: skip
    engine.abstain = True


def prepare_libraries() -> None:
    """Keep Transformers quiet, and use every core."""
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(choose_threads(0).value)


def make_engine(
    name: str,
    adapter: Path | AdapterFolder,
    base: str | None = None,
    server: "VLLMServer | None" = None,
    precision: str = "auto",
) -> Engine:
    """Make the engine `torch`, `llamacpp` or `vllm` on an adapter; only the last needs a server.

    Raises `UserError` as `vlm.adapter.load` does, where llama.cpp cannot serve the base or is not installed, and for a
    server that cannot be reached or has no such model.
    """
    if name == "vllm":
        if server is None:
            raise UserError("--engine vllm: needs --vllm_url and --vllm_model")
        opened = open_adapter(adapter)
        refuse_unserved(opened)
        server.check()
        return VLLMEngine(_evidence_of(opened, base), server)
    if name == "llamacpp":
        if base is not None:
            raise UserError("--base: --engine llamacpp takes the base that the adapter names; leave one of them away")
        opened = open_adapter(adapter)
        merged = MergedBase.of(opened)
        return LlamaCppEngine(load_evidence(opened, merged.embedding_space()), merged.file)
    device = choose_device().value
    dtype, reason = choose_precision(precision, device)
    if precision != "auto":
        log_rank0(f"precision: {str(dtype).removeprefix('torch.')} ({reason})")
    return ReportEngine(load(adapter, base=base, device=device, dtype=dtype))


class LlamaCppEngine(Engine):
    """llama.cpp engine: it runs the merged language model in 8 bits; PyTorch runs image, vitals and head."""

    def __init__(self, model: EvidenceEncoder, file: Path) -> None:
        super().__init__(model)
        self.llama = LlamaCpp(file, torch.get_num_threads())

    @torch.no_grad()
    def draft(
        self, examples: Iterable[Example], batch_size: int = 16, max_new_tokens: int = 96, streamer: Any = None
    ) -> Iterator[Draft]:
        """Draft prepared examples in batches, of as many as fit into the KV cache. Takes a `streamer`."""
        model = self.model
        for cases in batches(examples, batch_size):
            prompts, encoded = _prompts(self, cases)
            most = model.prompt.most_new_tokens(max(map(len, prompts)), max_new_tokens)
            texts: list[tuple[str, str]] = []
            for group in self.llama.groups([len(prompt) for prompt in prompts], most):
                texts += self._texts([prompt.float().numpy() for prompt in prompts[group]], most, streamer)
            for (text, cut_at), row, distance in zip(texts, encoded.logits, encoded.distance, strict=True):
                yield Draft(text, row.tolist(), cut_at, float(distance))

    def _texts(self, prompts: Sequence[np.ndarray], most: int, streamer: Any) -> Iterator[tuple[str, str]]:
        """Yield the text of each of B prompts (T × H), and what cut it."""
        until, end, over = time.monotonic() + self.max_seconds, self.model.prompt.end_id, False
        steps: list[np.ndarray] = []
        for tokens in self.llama.generate(prompts, self.model.prompt.fixed_tokens, most, end):
            steps.append(tokens)  # B
            if streamer is not None:
                streamer.put(torch.from_numpy(tokens))
            if over := time.monotonic() > until:
                break
        cut_at = f"{most} tokens" if len(steps) == most else f"{self.max_seconds:g} seconds" if over else ""
        if streamer is not None:
            streamer.end()
        for row in range(len(prompts)):
            ids = [int(tokens[row]) for tokens in steps if tokens[row] != end]
            text = str(self.model.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            yield text, cut_at if len(ids) == len(steps) else ""


class VLLMEngine(Engine):
    """vLLM engine: a server runs the language model; PyTorch runs image, vitals and head."""

    def __init__(self, model: EvidenceEncoder, server: "VLLMServer") -> None:
        super().__init__(model)
        self.server = server

    @torch.no_grad()
    def draft(
        self, examples: Iterable[Example], batch_size: int = 16, max_new_tokens: int = 96, streamer: Any = None
    ) -> Iterator[Draft]:
        """Draft prepared examples, a batch a request. Takes a `streamer`."""
        model = self.model
        for cases in batches(examples, batch_size):
            prompts, encoded = _prompts(self, cases)
            texts = self.server.complete(prompts, max_new_tokens, model.prompt.end_id)
            found = zip(texts, encoded.logits.tolist(), encoded.distance.tolist(), strict=True)
            for (text, cut), row, distance in found:
                if streamer is not None:
                    streamer.on_finalized_text(text.strip(), stream_end=True)
                yield Draft(text.strip(), row, f"{max_new_tokens} tokens" if cut else "", distance)


def _prompts(engine: Engine, cases: list[Example]) -> tuple[list[torch.Tensor], FusedInputs]:
    """Return the prompts of cases, T × H each, and their evidence."""
    batch = engine.to_device(engine.collate(cases))
    padded, encoded = engine.model.embed_prompt(batch)  # B × T × H
    return [row[mask.bool()] for row, mask in zip(padded, batch["attention_mask"], strict=True)], encoded


def _evidence_of(adapter: AdapterFolder, base: str | None) -> EvidenceEncoder:
    """Load the parts before the language model, with the base's word embeddings; then release the base.

    The base is loaded unquantized: word embeddings never are quantized, and the fingerprint leaves out 4-bit values.
    """
    from vlm.model.llm import embedding_space, fingerprint, load_llm

    config = adapter.config
    llm = replace(config.model.llm, quantization="none")
    if base is not None:
        llm = replace(llm, base=base, sha256=None, revision=None)
    model, tokenizer = load_llm(llm, torch.device("cpu"), torch.float32)
    used = config._replace(model=replace(config.model, llm=llm))
    sha256, settings = getattr(model, "sha256", None), getattr(model, "settings_sha256", None)
    check_base(used, fingerprint(model), sha256, settings, adapter.path)
    return load_evidence(adapter, embedding_space(model, tokenizer))
