"""Draft one case and explain the draft, for `clinical-vlm draft --explain`."""

import argparse
import json
from typing import TextIO

from vlm.errors import require
from vlm.explanation.explain import explain
from vlm.explanation.picture import draw
from vlm.inference.command import OpenedCase
from vlm.inference.options import engine_of


def explain_case(arguments: argparse.Namespace, out: TextIO) -> None:
    """Print the draft, write the picture, and print the attributions of each chosen word; or print all of it as JSON.

    Raises `UserError` as `draft_case`, `explain` and `draw` do.
    """
    require("captum", "--explain: needs the package captum")
    inputs = arguments.image, arguments.vitals, arguments.context, arguments.signal
    case = OpenedCase.of(arguments.adapter, *inputs, **engine_of(arguments))
    stream = None if arguments.json else out
    report = case.draft(arguments.max_new_tokens, stream, arguments.fhir, arguments.fhir_subject)
    if stream is not None:
        print(report.after_text(), file=out, flush=True)  # print the draft even if its explanation fails
    words, read = arguments.explain_words, (case.context, case.signal)
    explanation = explain(case.engine, case.image, case.values, report, words, *read)
    draw(explanation, arguments.explain)
    if stream is None:
        print(
            json.dumps({**report.to_dict(), "explanation": explanation.to_dict()}, indent=2, ensure_ascii=False),
            file=out,
        )
        return
    print("", *explanation.lines(), f"picture: {arguments.explain}", sep="\n", file=out)
