"""Build the page's part for the images of a case: files to choose, previews side by side, roles in a study."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from vlm.app import view
from vlm.app.failures import Failed, TooLate
from vlm.app.service import Service
from vlm.data.case import CaseSpec
from vlm.data.images.square import Square
from vlm.errors import UserError
from vlm.inference.study_images import StudyImage

MOST_SLOTS = 8
"""Most images of a case on the page."""
_PRIOR = "prior:"
"""Prefix of the value of a role of an earlier study; the view follows."""
Pictures = list[Square]
"""The images of a case as the model sees them."""


class Arrived(NamedTuple):
    """Images that were just uploaded, or why they cannot be read."""

    pictures: Pictures
    message: str = ""


class _Slot(NamedTuple):
    """The components of one image."""

    column: gr.Column
    preview: gr.HTML
    role: gr.Dropdown | None
    days: gr.Textbox | None
    remove: gr.Button


class ImageForm:
    """The components for the images of a case, and their event handlers."""

    def __init__(self, service: Service, spec: CaseSpec) -> None:
        self.service, self.study = service, spec.study
        self.most = min(spec.study_images, MOST_SLOTS)

    def build(self) -> None:
        """Build the components, in the tab order of the keyboard."""
        most = f"at most {self.service.limits.upload >> 20} MiB"
        several = f"Images, up to {self.most}" if self.study else "Image"
        self.pictures, self.arrived = gr.State(None), gr.State(None)
        self.upload = gr.File(label=f"{several}: PNG, JPEG, TIFF or DICOM, {most}", height=180, elem_id="vlm-upload",
                              file_count="multiple" if self.study else "single")  # fmt: skip
        with gr.Row(elem_id="vlm-study" if self.study else None):
            self.slots = [self._slot(number) for number in range(1, self.most + 1)]
        for slot in self.slots:
            if slot.role and slot.days:
                slot.role.change(_asks_days, slot.role, slot.days, show_progress="hidden", api_visibility="private")

    def _slot(self, number: int) -> _Slot:
        with gr.Column(min_width=140, visible=False) as column:
            preview = gr.HTML(js_on_load=None)
            role, days = (None, None) if self.study is None else (
                gr.Dropdown(_choices(self.study.views), value="", label=f"Image {number} is", filterable=False),
                gr.Textbox(label=f"Image {number}: days before", visible=False, max_lines=1, max_length=20),
            )  # fmt: skip
            name = "the image" if self.study is None else f"image {number}"
            remove = gr.Button(f"Remove {name}", size="sm")
        return _Slot(column, preview, role, days, remove)

    @property
    def roles(self) -> list[Any]:
        """Components whose values `given` takes after the pictures: the roles, then the days."""
        return [slot.role for slot in self.slots if slot.role] + [slot.days for slot in self.slots if slot.days]

    @property
    def outputs(self) -> list[Any]:
        """Components that `updates` updates, in its order."""
        parts = [part for slot in self.slots for part in slot if part is not None]
        return [self.pictures, self.arrived, self.upload, *parts]

    def updates(self, pictures: Sequence[Square], roles: Sequence[Any] = ()) -> list[Any]:
        """Return the updates for these pictures; `roles` are the values of their roles, then of their days."""
        half = len(roles) // 2
        updates: list[Any] = [list(pictures), None, gr.File(None, visible=len(pictures) < self.most)]
        for place in range(self.most):
            there = place < len(pictures)
            number = place + 1 if self.study else None
            updates += [gr.Column(visible=there), view.picture(pictures[place].pixels, number) if there else ""]
            if self.study:
                role, days = (roles[place], roles[half + place]) if place < half else ("", "")
                updates += [gr.update(value=role), gr.Textbox(value=days, visible=str(role).startswith(_PRIOR))]
            updates.append(gr.Button(visible=there))
        return updates

    def given(self, pictures: Sequence[Square] | None, roles: Sequence[Any]) -> list[StudyImage]:
        """Return the images of the case with their roles; raises `UserError` for days that are no number."""
        half, images = len(roles) // 2, []
        for place, picture in enumerate(pictures or []):
            role, days = (str(roles[place] or ""), str(roles[half + place] or "")) if self.study else ("", "")
            prior = role.startswith(_PRIOR)
            time = _days(days, place + 1) if prior else None
            images.append(StudyImage(picture, role.removeprefix(_PRIOR), prior, time))
        return images

    # ---------------------------------------------------------------------------------------- events

    async def read(self, files: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Arrived:
        """Read uploaded images and delete them.

        Their paths are of no files: the last part is the name under which the gate has claimed the upload.
        """
        sent = [files] if isinstance(files, Mapping) else list(files)
        if len(sent) > self.most:
            return Arrived([], f"{len(sent)} images were given; at most {self.most} can be")
        pictures: Pictures = []
        for number, file in enumerate(sent, 1):
            name = "image" if len(sent) == 1 else f"image {number} of {len(sent)}"
            data = self.service.uploads.take(Path(file["path"]).name)
            if data is None:
                return Arrived([], f"{name}: not uploaded just now; choose it again")
            try:
                pictures.append(await self.service.read_image(data, name))
            except (UserError, TooLate, Failed) as error:
                return Arrived([], str(error))
        return Arrived(pictures)

    def place(self, arrived: Arrived | None, pictures: Pictures | None, *roles: Any) -> tuple[list[Any], str]:
        """Put images that arrived beside the others; returns the updates, and a message where they do not fit."""
        there, message = list(pictures or []), arrived.message if arrived else ""
        new = arrived.pictures if arrived else []
        if len(there) + len(new) > self.most:
            message, new = f"{len(there) + len(new)} images were given; at most {self.most} can be", []
        return self.updates(there + new, roles), message

    def without(self, place: int, pictures: Pictures | None, *roles: Any) -> list[Any]:
        """Return the updates with the image at `place` taken away; the others keep their roles."""
        there, half = list(pictures or []), len(roles) // 2
        kept = [number for number in range(len(there)) if number != place]
        rest = [""] * (half - len(kept)) if half else []
        moved = [[values[number] for number in kept] + rest for values in (roles[:half], roles[half:])] if half else []
        return self.updates([there[number] for number in kept], [value for values in moved for value in values])


def _choices(views: Sequence[str]) -> list[tuple[str, str]]:
    current = [("view not said", ""), *((view, view) for view in views)]
    return [*current, ("earlier study", _PRIOR), *((f"earlier {view}", _PRIOR + view) for view in views)]


def _asks_days(role: str) -> Any:
    return gr.Textbox(visible=role.startswith(_PRIOR))


def _days(text: str, number: int) -> float | None:
    try:
        return float(text.replace(",", ".")) if text.strip() else None
    except ValueError:
        raise UserError(f"image {number}: {text!r:.40} is not a number of days") from None
