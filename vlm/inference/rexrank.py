"""Draft the studies of a ReXrank file: its JSON in, the same JSON with `model_prediction` out.

ReXrank (Zhang et al., 2024; https://rexrank.ai) maps a study's id to its image paths, context and reference sections.
A missing text may be NaN there, which is no JSON; it is read as null.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.adapter import open_adapter
from vlm.atomic import replace_file
from vlm.data.case import CaseSpec
from vlm.data.study import view_name
from vlm.distributed import log_rank0, world_size
from vlm.errors import UserError
from vlm.inference.command import draft_table
from vlm.inference.line_counts import Counts
from vlm.inference.many import TableJob
from vlm.inference.rows import TableColumns
from vlm.plain import shortened

LARGEST_FILE = 256 << 20
"""Most bytes of a file of studies."""
Studies = dict[str, dict[str, Any]]


def draft_studies(
    adapter: str,
    file: Path,
    output: Path,
    images: Path,
    batch_size: int,
    max_new_tokens: int | None,
    resume: bool = False,
    **engine: Any,
) -> Counts:
    """Draft every study of a file, whose images lie below the folder `images`, and write the file `output`.

    The cases and drafts are kept beside it as JSON Lines, so that `resume` can go on. `engine` takes the arguments of
    `open_engine`. Raises `UserError` as `read_studies` and `draft_table` do.
    """
    if world_size() > 1:
        raise UserError("--rexrank: drafts in one process; start it without accelerate launch")
    if output.exists() and not resume:
        raise UserError(f"{output}: is there already; go on with --resume, or name another --output")
    studies, spec = read_studies(file), open_adapter(adapter, engine.get("revision")).config.spec
    if spec.context is False:
        log_rank0("note: the adapter was trained without a context, so those of the studies are left out")
    table, drafts = (output.with_name(f"{output.name}.{part}.jsonl") for part in ("cases", "drafts"))
    write_table(studies, spec, table)
    several = {"view": "view", "separator": ";"} if spec.study is not None else {}
    columns = TableColumns("image", "study_id", "context", **several)
    job = TableJob(table, drafts, images, columns, batch_size, max_new_tokens, findings=engine.get("findings") or "")
    counts = draft_table(adapter, job, resume, **engine)
    write_predictions(studies, drafts, output)
    return counts


def read_studies(file: Path) -> Studies:
    """Read study id → its entries; raises `UserError` that names the study and key of a wrong one."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise UserError(f"--rexrank: {file}: larger than {LARGEST_FILE >> 20} MiB")
        studies = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise UserError(f"--rexrank: {file}: cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--rexrank: {file}: no JSON: {str(error)[:200]}") from None
    if not isinstance(studies, dict) or not studies or not all(isinstance(one, dict) for one in studies.values()):
        raise UserError(f"--rexrank: {file}: maps the id of each study to an object with image_path and context")
    for name, study in studies.items():
        where = f"--rexrank: {file}: study {shortened(name)}"
        if not (images := _images(study)) or not all(isinstance(image, str) and image for image in images):
            raise UserError(f"{where}: image_path is not one or several names of files")
        if not isinstance(study.get("context"), str | None):
            raise UserError(f"{where}: context is no text")
    return studies


def case_rows(studies: Studies, spec: CaseSpec) -> Iterator[dict[str, Any]]:
    """Yield the row of a table for each study: its id, images with views, and context.

    An adapter of one image gets the study's key image. Of more images than the adapter reads it gets the first, the
    key image among them; a view that it does not know is left out, and so is a context if it was trained without.
    """
    known = spec.study.views if spec.study is not None else ()
    for name, study in studies.items():
        images, key = _images(study), study.get("key_image_path")
        order = sorted(range(len(images)), key=lambda place: images[place] != key)[: spec.study_images]
        planes: Any = study.get("frontal_lateral")
        paired = isinstance(planes, list) and len(planes) == len(images)
        views = [view_name(str(planes[place])) if paired else "" for place in sorted(order)]
        shown = [images[place].lstrip("/") for place in sorted(order)]
        several = {"image": shown, "view": [view if view in known else "" for view in views]}
        context = (study.get("context") or "") if spec.context is not False else ""
        yield {"study_id": name, "context": context, **(several if spec.study is not None else {"image": shown[0]})}


def write_table(studies: Studies, spec: CaseSpec, file: Path) -> None:
    """Write the rows as a table of JSON Lines, with which a run resumes."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in case_rows(studies, spec))
    replace_file(file, "".join(lines))


def write_predictions(studies: Studies, drafts: Path, output: Path) -> int:
    """Write the studies with their drafts as `model_prediction`; returns how many have none, and an `error` instead."""
    failed = 0
    with drafts.open(encoding="utf-8") as lines:
        for name, line in zip(studies, map(json.loads, lines), strict=True):
            studies[name] = {**studies[name], "model_prediction": line.get("text", "")}
            if "error" in line:
                studies[name]["error"] = line["error"]
                failed += 1
    replace_file(output, json.dumps(studies, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return failed


def _images(study: Mapping[str, Any]) -> list[Any]:
    images = study.get("image_path")
    return images if isinstance(images, list) else [images] if images else []
