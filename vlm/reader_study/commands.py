"""The command `reader-study`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlm.app.commands import add_listen_options, check_port
from vlm.plain import escaped


def reader_study_options(parser: argparse.ArgumentParser) -> None:
    """Have clinicians judge drafts blinded, and analyse what they say."""
    parts = parser.add_subparsers(required=True, metavar="PART")
    for name, about, add_options in (
        ("make", "make a study from a run", _make_options),
        ("serve", "show each reader the pages to judge, in a browser", _serve_options),
        ("results", "analyse the answers so far", _results_options),
    ):
        add_options(parts.add_parser(name, help=about, description=about, allow_abbrev=False))


def _make_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tested", metavar="RUN", help="run folder, or output of `clinical-vlm evaluate`")
    add("--output", required=True, help="new or empty folder to write; it holds patients' pictures and texts")
    add("--cases", type=int, default=50, help="cases to draw at random")
    add("--readers", type=int, default=2, help="readers, each of whom judges every text")
    add("--seed", type=int, default=0, help="seed of the draw and of each reader's order")
    add("--layout", choices=["single", "side_by_side"], default="single", help="one text a page, or all of a case")
    add("--sources", nargs="+", default=["draft", "reference", "constant"], metavar="SOURCE",
        help="texts to judge: draft, and reference, constant, nearest (see the evaluation's baselines)")  # fmt: skip
    add("--against", nargs="+", default=[], type=Path, metavar="RUN", help="other runs whose drafts are judged as well")
    add("--data", default="", help="config of the cases; default: the run's config.yaml")
    parser.set_defaults(run=run_make, takes_config=True)
    parser.epilog = "Options of the config, such as --data.root DIR, may follow."


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the study")
    add_listen_options(parser)
    parser.set_defaults(run=run_serve)


def _results_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the study")
    parser.set_defaults(run=run_results)


def run_make(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Make the study, and print the code of each reader."""
    from vlm.reader_study.from_run import StudyPlan, make_study  # after the arguments: --help need not wait for PyTorch
    from vlm.reader_study.study_file import read_study

    kept = ("cases", "readers", "seed", "layout", "sources", "against", "data")
    plan = StudyPlan(Path(arguments.tested), **{name: getattr(arguments, name) for name in kept}, options=options)
    output = Path(arguments.output)
    codes = make_study(plan, output)
    study = read_study(output)
    texts, patients = sum(len(case.texts) for case in study.cases), len({case.patient for case in study.cases})
    print(escaped(f"{output}: {len(study.cases)} cases of {patients} patients, {texts} different texts of "
                  f"{', '.join(study.sources)}; {len(study.readers[0].pages)} pages a reader"))  # fmt: skip
    print(*(f"reader {reader}: code {code}" for code, reader in codes.items()), sep="\n")
    print(escaped(f"next: clinical-vlm reader-study serve {output}"))


def run_serve(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Serve the pages until a signal ends it."""
    check_port(arguments.port)
    from vlm.reader_study.judging_page import serve_study

    serve_study(arguments)


def run_results(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Analyse the answers and print a summary."""
    from vlm.reader_study.analysis import write_results

    print(*write_results(arguments.folder), sep="\n")
