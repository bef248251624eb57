"""Register config, model and processor of an adapter with the Auto classes of Transformers.

Transformers finds them by the `model_type` in config.json, without `trust_remote_code`. All three open the folder as
`ClinicalVLM.from_pretrained` does: what this refuses, they refuse.
"""

import copy
import functools
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.generation import BaseStreamer

from vlm.adapter import load, open_adapter
from vlm.adapter.layout import MODEL_TYPE
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.integrations.auto_processor import ClinicalVLMProcessor, GivenCase
from vlm.pretrained import ClinicalVLM
from vlm.report import Report

WITHOUT_EFFECT = {
    "trust_remote_code", "adapter_kwargs", "code_revision", "local_files_only", "token", "_from_auto", "_from_pipeline",
    "_commit_hash",
}  # fmt: skip
"""Options that Transformers passes along and an adapter has no use for: it holds no code and no further adapter."""


class ClinicalVLMConfig(PreTrainedConfig):
    """Name an adapter folder to Transformers; what is in its config.json stays with us."""

    model_type = MODEL_TYPE

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:  # type: ignore[override]
        """Check an adapter folder; raises `UserError` as `from_dict` does."""
        return cls.from_dict({}, name_or_path=pretrained_model_name_or_path, **options)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Check the folder that the content of a config.json is from.

        Raises `UserError` as `open_adapter` does, and for a Hub id: Transformers would go on to the base that
        adapter_config.json names, and leave image, vitals and head out.
        """
        folder = str(options.pop("name_or_path", ""))
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: Transformers takes an adapter on the Hub for its base; give it the folder, "
                            f"vlm.adapter.resolve({folder!r})")  # fmt: skip
        config = cls(name_or_path=str(open_adapter(folder).path))  # type: ignore[call-arg]
        unused = options.pop("return_unused_kwargs", False)
        return (config, options) if unused else config


class ClinicalVLMForConditionalGeneration(PreTrainedModel):
    """Draft through the interface of Transformers, by the model in `vlm`."""

    config_class = ClinicalVLMConfig
    main_input_name = "cases"

    def __init__(self, config: ClinicalVLMConfig, vlm: ClinicalVLM) -> None:
        super().__init__(config)
        self.vlm = vlm
        self.reports: list[Report] = []
        """Reports of the last call of `generate`, with probabilities, warnings and the notice."""
        self.generation_config = GenerationConfig(
            max_new_tokens=vlm.spec.max_new_tokens, eos_token_id=vlm.prompt.end_id, pad_token_id=vlm.prompt.pad_id
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: Any,
        *,
        config: Any = None,
        base: str | None = None,
        revision: str | None = None,
        device: torch.device | None = None,
        dtype: Any = None,
        **options: Any,
    ) -> "ClinicalVLMForConditionalGeneration":
        """Load an adapter folder or Hub id as `ClinicalVLM.from_pretrained` does, with its arguments and errors.

        Raises `UserError` also for options of Transformers that an adapter cannot follow, such as `device_map`.
        """
        for name, value in options.items():
            if name not in WITHOUT_EFFECT and value is not None:
                raise UserError(f"{name}: an adapter says itself how its base is loaded; leave it away")
        opened = open_adapter(str(pretrained_model_name_or_path), revision)
        vlm = load(opened, base, device, None if dtype == "auto" else dtype, model_class=ClinicalVLM)
        named = ClinicalVLMConfig(name_or_path=str(opened.path))  # type: ignore[call-arg]
        return cls(named, cast(ClinicalVLM, vlm)).eval()

    def save_pretrained(self, save_directory: Any, **_: Any) -> None:  # type: ignore[override]
        """Write the adapter folder, as `ClinicalVLM.save_pretrained` does."""
        self.vlm.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Push the adapter, as `ClinicalVLM.push_to_hub` does, with its options."""
        return self.vlm.push_to_hub(repo_id, **options)

    @classmethod
    def can_generate(cls) -> bool:
        """Tell the pipeline that it drafts."""
        return True

    def generate(  # type: ignore[override]
        self,
        cases: Iterable[Any],
        input_ids: Any = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Draft the cases of a `ClinicalVLMProcessor`, one after another; returns the drafts' token ids, B × T, padded.

        The reports are in `reports`; where these hold warnings, a Python warning counts them. Raises `UserError` for
        anything but greedy drafts of a length, and as `ClinicalVLM.predict` does.
        """
        most = _draft_length(self.generation_config, generation_config, options)
        engine, kept = ReportEngine(self.vlm), _TokenIds()
        prepared = [case.prepare(engine) for case in _flat(cases)]
        self.reports = list(engine.reports(prepared, 1, most, kept))
        if count := sum(len(report.warnings) for report in self.reports):
            # Not the warnings themselves: they may hold values of a patient, and these would end in logs.
            warnings.warn(f"warnings on the drafts: {count}; the model's `reports` hold them", stacklevel=2)
        return torch.nn.utils.rnn.pad_sequence(kept.drafts, True, self.vlm.prompt.pad_id)


class _TokenIds(BaseStreamer):
    """Keep the token ids of each draft."""

    def __init__(self) -> None:
        self.drafts: list[torch.Tensor] = []
        self.parts: list[torch.Tensor] = []

    def put(self, value: torch.Tensor) -> None:
        """Take some ids: first those of the prompt, of which there are none beside embeddings."""
        self.parts.append(value.flatten().cpu())

    def end(self) -> None:
        """End a draft."""
        self.drafts.append(torch.cat(self.parts))
        self.parts = []


def _flat(cases: Iterable[Any]) -> Iterable[GivenCase]:
    """Yield the cases of one call of the processor, or of several that the pipeline put into one batch."""
    for case in cases:
        yield from case if isinstance(case, list) else [case]


def _draft_length(own: GenerationConfig, given: GenerationConfig | None, options: Mapping[str, Any]) -> int | None:
    """Return the most new tokens that options of Transformers ask for; raises `UserError` for any but greedy drafts."""
    config = copy.deepcopy(given or own)
    left, usual = config.update(**options), own.to_dict()
    asked = left | {name: value for name, value in config.to_dict().items() if value != usual.get(name)}
    for name in sorted(asked.keys() - {"max_new_tokens"}):
        if asked[name] not in (None, False) and (name, asked[name]) != ("num_beams", 1) and not name.startswith("_"):
            raise UserError(f"{name}: drafts are greedy; max_new_tokens is the only option of their generation")
    return config.max_new_tokens  # type: ignore[no-any-return]


class AutoClasses(NamedTuple):
    """Hold the classes that are registered."""

    config: type[ClinicalVLMConfig]
    model: type[ClinicalVLMForConditionalGeneration]
    processor: type[ClinicalVLMProcessor]


@functools.cache
def register_auto_classes() -> AutoClasses:
    """Register an adapter's classes with `AutoConfig`, `AutoModelForImageTextToText`, `AutoModel`, `AutoProcessor`.

    Returns them, for what the Auto classes cannot load themselves: an adapter on the Hub, or of an earlier version,
    which has no `model_type`. A second call changes nothing.
    """
    AutoConfig.register(MODEL_TYPE, ClinicalVLMConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForImageTextToText):
        auto.register(ClinicalVLMConfig, ClinicalVLMForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(ClinicalVLMConfig, ClinicalVLMProcessor, exist_ok=True)
    return AutoClasses(ClinicalVLMConfig, ClinicalVLMForConditionalGeneration, ClinicalVLMProcessor)
