"""Draft one case and explain the draft, for `clinical-vlm draft --explain`."""

import argparse
import json
from typing import TextIO

from vlm.errors import require
from vlm.explanation.explain import explain
from vlm.explanation.picture import draw
from vlm.inference.command import OpenedCase
from vlm.inference.filing import Filing
from vlm.inference.given_images import given_images
from vlm.inference.options import engine_of
from vlm.inference.study_images import StudyImage


def explain_case(arguments: argparse.Namespace, out: TextIO) -> None:
    """Print the draft, write the picture, and print the attributions of each chosen word; or print all of it as JSON.

    Raises `UserError` as `draft_case`, `explain` and `draw` do.
    """
    require("captum", "--explain: needs the package captum")
    with given_images(arguments) as images:
        _explain(arguments, images, out)


def _explain(arguments: argparse.Namespace, images: list[StudyImage], out: TextIO) -> None:
    told = arguments.vitals, arguments.context, arguments.prior_report, arguments.signal
    case = OpenedCase.of(arguments.adapter, images, *told, Filing.of(arguments), **engine_of(arguments))
    stream = None if arguments.json else out
    report = case.draft(arguments.max_new_tokens, stream)
    if stream is not None:
        print(report.after_text(), file=out, flush=True)  # print the draft even if its explanation fails
    inputs = case.images, case.values, report, arguments.explain_words, case.context, case.prior_report, case.signal
    explanation = explain(case.engine, *inputs)
    draw(explanation, arguments.explain)
    if stream is None:
        print(
            json.dumps({**report.to_dict(), "explanation": explanation.to_dict()}, indent=2, ensure_ascii=False),
            file=out,
        )
        return
    print("", *explanation.lines(), f"picture: {arguments.explain}", sep="\n", file=out)
