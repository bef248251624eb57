"""Render a draft as HTML for the page; the template escapes all untrusted text."""

import json
from html import escape
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from vlm.app.about import Adapter
from vlm.data.images.color import bgr
from vlm.data.sections import heading, section_parts
from vlm.data.vitals.schema import VitalsSchema
from vlm.inference.fhir import to_fhir
from vlm.model.calibration import Calibration
from vlm.report import ReadImage, Report
from vlm.resources import data_uri, render


def head(adapter: Adapter) -> str:
    """Render the page's title and the adapter's."""
    return render("vlm.app", "head.html.j2", title=adapter.title)


def idle() -> str:
    """Render the placeholder before the first draft."""
    return _result(state="idle")


def refused(message: str, title: str = "No draft") -> str:
    """Render a refusal: one line that says why."""
    return _result(state="error", message=message, title=title)


def waiting(message: str) -> str:
    """Render a message while something takes its time."""
    return f'<p class="vlm-soft" role="status">{escape(message)}</p>' if message else ""


def writing(text: str, ahead: int) -> str:
    """Render a draft that is being written, or waits behind others."""
    before = f"waiting; {ahead} asked before" if ahead else "reading the case …"
    return _result(state="writing", text=text, message="writing …" if text else before)


def finished(
    report: Report, adapter: Adapter, context: str = "", prior_report: str = "", study: str = "", filed: str = ""
) -> str:
    """Render a finished draft with its probabilities, warnings and files.

    `study` is the UID of its study in the archive, `filed` says whether the draft is stored there.
    """
    schema, names = adapter.config.spec.schema, adapter.config.spec.sections
    bundle = to_fhir(report, schema, adapter.software, bool(report.images), context=context, study=study)
    read = [*_values(report, schema), *_images(report)]
    told = {"the indication": context, "the earlier report": prior_report}
    return _result(
        state="done",
        text=report.text,
        parts=[(heading(name) if name else "", part) for name, part in section_parts(report.text, names) if part],
        report=report,
        filed=filed,
        meaning=meaning(adapter.config.calibration),
        read=", ".join([*read, *(name for name, text in told.items() if text.strip())]),
        files=[
            _file("Text", "draft.txt", "text/plain", str(report)),
            _file("JSON", "draft.json", "application/json", _json(report.to_dict())),
            _file("FHIR", "draft.fhir.json", "application/fhir+json", _json(bundle)),
        ],
    )


def meaning(calibration: Calibration) -> str:
    """Explain the probability bars to their reader."""
    if not calibration.patients:
        return f"{calibration.describe().capitalize()}: read them as an order, not as frequencies."
    fitted = f" (temperature {calibration.temperature:.2f})" if type(calibration) is Calibration else ""  # not a site's
    return (
        f"Of 100 cases at 80 %, about 80 should have the label. {calibration.describe().capitalize()}{fitted}; "
        "other patients need their own."
    )


def percent(value: float) -> str:
    """Format a probability: never 0 and never 1, which no model can know."""
    return "< 0.1 %" if value < 0.001 else "> 99.9 %" if value > 0.999 else f"{value:.1%}".replace("%", " %")


def picture(square: np.ndarray, number: int | None = None) -> str:
    """Render an image as the model sees it, S × S or S × S × 3, uint8, with its number in a study."""
    side = square.shape[0]
    caption = (
        f"As the model sees it, {side} × {side} pixels" if number is None else f"Image {number} as the model sees it"
    )
    return f'<figure class="vlm-picture"><img alt="{caption}" src="{png_link(square)}">' \
           f"<figcaption>{caption}</figcaption></figure>"  # fmt: skip


def png_link(image: np.ndarray) -> str:
    """Encode an image, grey or RGB, as a link within the page itself: no file of it is left anywhere."""
    return data_uri("image/png", cv2.imencode(".png", bgr(image))[1].tobytes())


def _result(**values: Any) -> str:
    return render("vlm.app", "result.html.j2", **{"report": None, "filed": "", "percent": percent, **values})


def _values(report: Report, schema: VitalsSchema) -> list[str]:
    units = {vital.name: vital.unit for vital in schema.vitals}
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in report.vitals.items()}
    return [f"{name.replace('_', ' ')} {value} {units[name]}".strip() for name, value in shown.items()]


def _images(report: Report) -> list[str]:
    """Name the images that were read; one without a role is `an image`."""
    if not report.images:
        return ["no image"]
    return ["an image"] if report.images == (ReadImage(),) else [str(image) for image in report.images]


def _file(title: str, name: str, kind: str, text: str) -> dict[str, str]:
    return {"title": title, "name": name, "link": f"data:{kind};charset=utf-8,{quote(text)}"}


def _json(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False)
