"""Draft a report: `python infer.py --adapter runs/demo/adapter --image case.png --vitals "glucose=8.7, bp=145/90"`.

Or those of a table, a JSON object a line: `python infer.py --input cases.csv --images images --output reports.jsonl`.
"""

import argparse
import gc
import json
import os
import sys
from pathlib import Path

from vlm.errors import UserError, run_program
from vlm.inference.arguments import cluster_of, engine_of, parse_arguments


def draft_table(arguments: argparse.Namespace) -> None:
    from vlm.data.ingest.read import TableOptions, reading_notes
    from vlm.distributed import say
    from vlm.inference.command import draft_table
    from vlm.inference.many import TableColumns, TableJob

    table = Path(arguments.input)
    images = Path(arguments.images) if arguments.images else table.parent
    columns = TableColumns(arguments.image_column, arguments.id_column, arguments.context_column)
    options = TableOptions(arguments.encoding, arguments.sheet)
    say(*(f"warning: {note}" for note in reading_notes(table, options)))
    sizes = arguments.batch_size, arguments.max_new_tokens
    job = TableJob(table, Path(arguments.output), images, columns, *sizes, options)
    counts = draft_table(arguments.adapter, job, arguments.resume, cluster_of(arguments), **engine_of(arguments))
    print(f"{job.output}: {counts.lines:,} lines", file=sys.stderr)
    if counts.cut:
        way_out = f"--max_new_tokens is {job.max_new_tokens}, --max_seconds {arguments.max_seconds:g}"
        print(f"warning: {counts.cut:,} drafts are not finished, as their lines say; {way_out}", file=sys.stderr)
    if counts.errors:
        raise UserError(f"{job.output}: {counts.errors:,} rows could not be read; their lines hold an `error`")


def main() -> None:
    arguments = parse_arguments(__doc__)
    # The first word comes four seconds sooner: nothing here is compiled or lives long enough to be collected.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if arguments.input:
        draft_table(arguments)
        return
    if arguments.explain:
        from vlm.explanation.explained_draft import explain_case

        explain_case(arguments, sys.stdout)
        return
    gc.disable()
    from vlm.inference.command import FhirFile, draft_case  # after the arguments: --help need not wait for PyTorch

    stream = None if arguments.json else sys.stdout
    case = arguments.adapter, arguments.image, arguments.vitals, arguments.max_new_tokens, stream
    fhir = FhirFile.of(arguments.fhir, arguments.fhir_subject)
    report = draft_case(*case, fhir=fhir, **engine_of(arguments))
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(report.after_text())


if __name__ == "__main__":
    run_program(main)
