"""`clinical-vlm COMMAND`: train, draft, evaluate, share and serve from one command line.

`accelerate launch -m vlm.cli train --config demo` trains on several devices. A command's libraries are imported when
it runs, so that `--help` need not wait for PyTorch.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.adapter.commands import checklist_options, export_options, merge_options, push_options, seal_options
from vlm.app.commands import serve_options, space_options
from vlm.config import Config
from vlm.config.strict import dotted_names
from vlm.data.prepare.commands import check_options, pack_options
from vlm.errors import UserError, require, run_program
from vlm.evaluation.commands import compare_options, drift_options, evaluate_options
from vlm.explanation.commands import explain_options
from vlm.inference.options import add_draft_options, check_draft_options, cluster_of, engine_of
from vlm.reader_study.commands import reader_study_options
from vlm.training.commands import train_options, watch_options
from vlm.version import __version__

if TYPE_CHECKING:
    from vlm.inference.line_counts import Counts


def draft_options(parser: argparse.ArgumentParser) -> None:
    """Draft the report of one case, or of every row of a table."""
    add_draft_options(parser)
    parser.set_defaults(run=run_draft)


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "train": train_options,
    "draft": draft_options,
    "evaluate": evaluate_options,
    "compare": compare_options,
    "drift": drift_options,
    "reader-study": reader_study_options,
    "check": check_options,
    "pack": pack_options,
    "push": push_options,
    "seal": seal_options,
    "merge": merge_options,
    "export": export_options,
    "checklist": checklist_options,
    "watch": watch_options,
    "explain": explain_options,
    "serve": serve_options,
    "space": space_options,
}
"""Name → what adds its options; the first line of its docstring is its help."""
ALIASES = {"export": ["gguf"]}
SHELLS = ("bash", "zsh")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; raises `UserError` for anything the user can mend."""
    refuse_namesake()
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--print-completion"]:
        print(completion(words[1] if words[1:] else "bash"))
        return
    parser = build_parser()
    arguments, options = parser.parse_known_args(words)
    if options and "takes_config" not in arguments:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    if code := arguments.run(arguments, options):
        sys.exit(code)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command. Those that take a config leave its options to `vlm.config.parsing`."""
    parser = argparse.ArgumentParser(prog="clinical-vlm", description="Reports from images and clinical values.")
    parser.add_argument("--version", action="version", version=f"clinical-vlm {__version__}")
    parser.add_argument("--print-completion", choices=SHELLS, help="print a shell completion script")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, add_options in COMMANDS.items():
        about = (add_options.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name, aliases=ALIASES.get(name, []), help=about[0].lower() + about[1:].rstrip("."), description=about,
            allow_abbrev=False, add_help=name != "train",  # which has a help of its own, on every key of the config
        )  # fmt: skip
        add_options(command)
        if command.get_default("takes_config") and name != "train":
            command.epilog = "Options of the config, such as --data.root DIR, may follow."
    return parser


def completion(shell: str) -> str:
    """The script that completes commands, options and keys of the config in a shell."""
    require("shtab", "--print-completion: needs shtab")
    import shtab

    if shell not in SHELLS:
        raise UserError(f"--print-completion: {', '.join(SHELLS)}, not {shell}")
    parser = build_parser()
    (commands,) = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.values():
        if command.get_default("takes_config"):
            known = command._option_string_actions
            for option in ("--config", *(f"--{key}" for key in dotted_names(Config))):
                if option not in known:
                    command.add_argument(option)
    return str(shtab.complete(parser, shell))


def refuse_namesake() -> None:
    """Raise `UserError` where the package `vlm`, on aerodynamics, lies in the same folder as this one."""
    try:
        found = importlib.metadata.distribution("vlm")
    except importlib.metadata.PackageNotFoundError:
        return
    folder = Path(__file__).parent
    if Path(str(found.locate_file("vlm"))).resolve() == folder.resolve():
        raise UserError(f"{folder}: holds the package vlm {found.version}, on aerodynamics, as well; "
                        "pip uninstall vlm clinical-vlm, then pip install clinical-vlm")  # fmt: skip


def run_draft(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Check the options, then draft a case, explain it as well, or draft a table."""
    check_draft_options(arguments)
    # The first word comes four seconds sooner: nothing here is compiled or lives long enough to be collected.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if arguments.rexrank:
        draft_studies(arguments)
    elif arguments.input:
        draft_table(arguments)
    elif arguments.explain:
        from vlm.explanation.explained_draft import explain_case

        explain_case(arguments, sys.stdout)
    else:
        gc.disable()
        draft_case(arguments)


def draft_case(arguments: argparse.Namespace) -> None:
    """Print one draft and what its reader should know."""
    from vlm.inference.command import draft_case  # after the arguments: --help need not wait for PyTorch
    from vlm.inference.filing import Filing
    from vlm.inference.given_images import given_images

    stream = None if arguments.json else sys.stdout
    told = arguments.context, arguments.prior_report, arguments.signal
    with given_images(arguments) as images:
        case = arguments.adapter, images, arguments.vitals, arguments.max_new_tokens, stream
        report = draft_case(*case, *told, Filing.of(arguments), **engine_of(arguments))
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(report.after_text())


def draft_table(arguments: argparse.Namespace) -> None:
    """Write the drafts of a table's rows, a JSON object a line."""
    from vlm.data.ingest.read import TableOptions, reading_notes
    from vlm.distributed import log_rank0
    from vlm.inference.command import draft_table
    from vlm.inference.many import TableJob
    from vlm.inference.rows import TableColumns

    table = Path(arguments.input)
    images = Path(arguments.images) if arguments.images else table.parent
    names = ("image", "id", "context", "view", "study", "prior", "prior_days", "prior_report")
    own = {name: getattr(arguments, f"{name}_column") for name in names}
    columns = TableColumns(**own, separator=arguments.separator)
    options = TableOptions(arguments.encoding, arguments.sheet)
    log_rank0(*(f"warning: {note}" for note in reading_notes(table, options)))
    sizes = arguments.batch_size, arguments.max_new_tokens
    job = TableJob(table, Path(arguments.output), images, columns, *sizes, options, arguments.findings or "")
    counts = draft_table(arguments.adapter, job, arguments.resume, cluster_of(arguments), **engine_of(arguments))
    report_counts(job.output, counts, arguments)


def draft_studies(arguments: argparse.Namespace) -> None:
    """Write the drafts of a ReXrank file."""
    from vlm.inference.rexrank import draft_studies

    file, output = Path(arguments.rexrank), Path(arguments.output)
    images = Path(arguments.images) if arguments.images else file.parent
    sizes = arguments.batch_size, arguments.max_new_tokens
    job = file, output, images, *sizes, arguments.resume
    report_counts(output, draft_studies(arguments.adapter, *job, **engine_of(arguments)), arguments)


def report_counts(output: Path, counts: "Counts", arguments: argparse.Namespace) -> None:
    """Print how many drafts there are; raises `UserError` where some cases have an error instead."""
    print(f"{output}: {counts.lines:,} lines", file=sys.stderr)
    if counts.cut:
        tokens = arguments.max_new_tokens or "that of the adapter"
        way_out = f"--max_new_tokens is {tokens}, --max_seconds {arguments.max_seconds:g}"
        print(f"warning: {counts.cut:,} drafts are not finished, as their lines say; {way_out}", file=sys.stderr)
    if counts.withheld:
        print(f"note: {counts.withheld:,} drafts are withheld; their lines say why", file=sys.stderr)
    if counts.errors:
        raise UserError(f"{output}: {counts.errors:,} rows could not be read; their lines hold an `error`")


def program() -> None:
    """The console script."""
    run_program(main)


if __name__ == "__main__":
    program()
