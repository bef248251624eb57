"""Read image and vitals for the Auto classes of Transformers, and decode the drafts."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from vlm.adapter import open_adapter
from vlm.adapter.validate import check_sources
from vlm.data.images.image import ImageSpec
from vlm.data.images.square import Square, decode_square
from vlm.errors import UserError, one_line
from vlm.inference.fhir import is_fhir
from vlm.inference.study_images import StudyImage
from vlm.inference.vitals_argument import parse_vitals
from vlm.plain import printable
from vlm.weights import language_model_folder

if TYPE_CHECKING:
    from vlm.inference.engine import Engine, Prepared

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Modes of Pillow, of 8 bits a channel at most, that a PNG file keeps as they are."""


@dataclass(frozen=True, eq=False)
class GivenCase:
    """Hold one case as it was given; Transformers passes it on, where it would take a tuple or a dict apart."""

    images: Sequence[Any]
    """Files, pictures of Pillow, or `StudyImage` of a file."""
    vitals: Mapping[str, Any]
    context: str = ""

    def prepare(self, engine: "Engine") -> "Prepared":
        """Read the case; raises `UserError` as `Engine.prepare` does, and for what is no image."""
        spec = engine.model.spec.image
        images = [item if isinstance(item, StudyImage) else StudyImage(_image(item, spec)) for item in self.images]
        return engine.prepare(images, self.vitals, self.context)


class ClinicalVLMProcessor(ProcessorMixin):
    """Take cases as they are given, and decode drafts; the prompt is the model's business.

    The text of a case is its vitals, as of `clinical-vlm draft --vitals`: `glucose=8.7, bp=145/90`, or JSON.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.tokenizer.name_or_path!r})"

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, base: str | None = None, revision: str | None = None, **_: Any
    ) -> "ClinicalVLMProcessor":
        """Load the tokenizer of the base that an adapter folder or Hub id names, or of `base`.

        Raises `UserError` as `open_adapter` does, and for a tokenizer that cannot be loaded.
        """
        opened = open_adapter(str(pretrained_model_name_or_path), revision)
        llm = opened.config.model.llm
        check_sources(opened.path, opened.config.model, given_base=base is not None)
        source = base or language_model_folder(llm.base, llm.sha256)
        with one_line(f"model.llm.base: cannot load the tokenizer of {base or llm.base}"):
            commit = None if base else llm.revision
            return cls(AutoTokenizer.from_pretrained(source, revision=commit, trust_remote_code=False))

    def save_pretrained(self, save_directory: Any, **_: Any) -> list[str]:  # type: ignore[override]
        """Write nothing: the adapter, which the model writes, names the tokenizer."""
        return []

    def __call__(  # type: ignore[override]
        self,
        images: Any = None,
        text: str | list[str] | tuple[str, ...] | None = None,
        context: str | Sequence[str] = "",
        return_tensors: Any = None,
        padding: Any = None,
    ) -> BatchFeature:
        """Take one case, or as many as there are texts: an image or a list of them, vitals as text, the context.

        An image is a file, which is read as for `predict`, or a picture of Pillow of 8 bits. Returns the inputs of
        `generate`; the text is not shown to the model as words, so `input_ids` are B × 0. Raises `UserError` for a
        text that is no vitals.
        """
        several = isinstance(text, list | tuple)
        texts: list[str] = list(text) if isinstance(text, list | tuple) else [text or ""]
        pictures = list(images) if several and images is not None else [images] * len(texts)
        contexts = [context] * len(texts) if isinstance(context, str) else list(context)
        if not len(texts) == len(pictures) == len(contexts):
            raise UserError(f"{len(texts)} texts, {len(pictures)} images and {len(contexts)} contexts: one each a case")
        cases = [
            GivenCase(_listed(shown), read_values(words), said)
            for shown, words, said in zip(pictures, texts, contexts, strict=True)
        ]
        return BatchFeature({"cases": cases, "input_ids": torch.zeros(len(cases), 0, dtype=torch.long)})

    def apply_chat_template(self, conversation: Any, context: str = "", **options: Any) -> BatchFeature:  # type: ignore[override]
        """Take the one message of a chat as a case: its images, and its texts as vitals.

        Raises `UserError` for other roles than the user's, whose words an adapter has no place for, and as a call does.
        """
        context = (options.get("processor_kwargs") or {}).get("context", context)
        if len(conversation) != 1 or conversation[0]["role"] != "user":
            raise UserError("messages: give one, of the user, with image and vitals; the prompt is the adapter's")
        content = conversation[0]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts: list[str] = []
        images: list[Any] = []
        for part in parts:
            sources = [part[key] for key in ("text", "image", "path") if key in part]
            if part.get("type") not in ("text", "image") or len(sources) != 1:
                raise UserError("messages: a part is a text, or an image with its file as path")
            (texts if part["type"] == "text" else images).append(sources[0])
        return self(images or None, "\n".join(texts), context)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **_: Any
    ) -> list[str]:
        """Decode drafts, B × T token ids, without characters that steer a terminal, as `predict` does."""
        texts = self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens)
        return [printable(text.strip()) for text in texts]


def read_values(text: str) -> Mapping[str, Any]:
    """Read vitals from the text of a case; never from a file that it names, for its author may be a stranger."""
    values = parse_vitals(text, "text")
    if is_fhir(values):
        raise UserError("text: holds names and values, not FHIR resources; clinical-vlm draft --vitals reads these")
    return values  # type: ignore[no-any-return]


def _listed(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) and not isinstance(images, StudyImage) else [images]


def _image(given: Any, spec: ImageSpec) -> str | Path | Square:
    """Leave a file to the reader of files; encode decoded pixels as one, so that they take the same way."""
    from PIL import Image

    if isinstance(given, str | Path):
        return given
    if not isinstance(given, Image.Image):
        raise UserError(f"an image is a file or a picture of Pillow, not {type(given).__name__}")
    if given.mode.startswith(("I", "F")):
        raise UserError("the image: has more than 8 bits in Pillow, which do not say their range; give its file")
    file = io.BytesIO()
    (given if given.mode in PNG_MODES else given.convert("RGB")).save(file, "PNG")
    return decode_square(file.getvalue(), "the image", spec)
