"""Provide the public model, which loads, saves, shares and drafts."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers.generation import BaseStreamer

from vlm.adapter.folder import load, save
from vlm.adapter.hub import open_adapter, push
from vlm.adapter.metadata import CardDetails
from vlm.adapter.site_calibration import read_site
from vlm.inference.engine import Case, ReportEngine
from vlm.inference.signal_input import Signal
from vlm.inference.study_images import Images
from vlm.model import clinical_vlm
from vlm.report import Report


class ClinicalVLM(clinical_vlm.ClinicalVLM):
    """Draft reports by a frozen 4-bit language model with an adapter for an image and clinical values.

    Load one with `from_pretrained` and draft with `predict`; train one with `vlm.train`.
    """

    @classmethod
    def from_pretrained(
        cls,
        adapter: str | Path,
        base: str | None = None,
        revision: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        site: str | Path | None = None,
    ) -> "ClinicalVLM":
        """Load an adapter folder, Hub id or name such as `demo`, and the base model that it names or `base`.

        `revision` is that of the Hub id; `site` the file of a site's recalibration. Raises `UserError` for a missing
        file or tensor, for a base other than the one the adapter was trained on, and as `read_site` does.
        """
        opened = open_adapter(adapter, revision)
        calibration = read_site(site, opened) if site is not None else opened.config.calibration
        model = cast(ClinicalVLM, load(opened, base, device, dtype, model_class=cls))
        model.calibration = calibration
        return model

    def save_pretrained(self, folder: str | Path, metrics: Mapping[str, Any] | None = None) -> Path:
        """Write the adapter folder atomically; `metrics` are its measured results.

        Raises `UserError` for a folder that holds anything but an adapter.
        """
        return save(self, folder, metrics)

    def push_to_hub(
        self,
        repo: str,
        metrics: Mapping[str, Any] | None = None,
        private: bool = False,
        revision: str | None = None,
        message: str = "Adapter",
        details: CardDetails | None = None,
    ) -> str:
        """Push the adapter to the Hub with its metrics; returns the commit.

        `details` fill in the card. Raises `UserError` as `vlm.adapter.hub.push` does.
        """
        with tempfile.TemporaryDirectory() as work:
            return push(save(self, Path(work) / "adapter", metrics), repo, private, revision, message, details).commit

    def predict(
        self,
        image: Images = None,
        vitals: Mapping[str, Any] | None = None,
        max_new_tokens: int | None = None,
        streamer: BaseStreamer | None = None,
        context: str = "",
        prior_report: str = "",
        signal: Signal = None,
    ) -> Report:
        """Draft the report of one case from an image file, or none, and vitals by name.

        For a study `image` is a list of files, or of `StudyImage` with their view and time. `context` is text to show
        in the prompt, such as the indication; `prior_report` is that of the earlier study; `signal` is a file or the
        samples of a signal such as an ECG, recorded as those for training. A draft has at most
        `max_new_tokens`, by default as many as in the adapter's evaluation. A Transformers `streamer` gets the tokens
        as they are generated. Raises `UserError` for an image or a signal that cannot be read, for images and roles
        that the adapter does not take, for a vital that it does not know, and for a context that is too long.
        """
        case = (image, vitals, context, prior_report, signal)
        return ReportEngine(self).predict([case], 1, max_new_tokens, streamer)[0]

    def predict_many(
        self, cases: Sequence[Case], batch_size: int = 16, max_new_tokens: int | None = None
    ) -> list[Report]:
        """Draft the reports of many cases, in their order; raises `UserError` as `predict` does.

        A case holds the image or images, the vitals, and if there are any the context and the prior report.
        """
        return ReportEngine(self).predict(cases, batch_size=batch_size, max_new_tokens=max_new_tokens)
