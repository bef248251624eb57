"""Define the commands `evaluate`, `compare` and `drift`."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def evaluate_options(parser: argparse.ArgumentParser) -> None:
    """Test an adapter on unseen cases."""
    parser.add_argument("adapter", help="adapter folder or Hub id")
    parser.add_argument("--data", required=True, help="config, or table of test cases")
    parser.add_argument("--output", required=True, help="new or empty folder to write")
    parser.add_argument("--revision", help="commit, tag or branch of an adapter on the Hub")
    parser.add_argument("--base", help="base model instead of the adapter's")
    parser.add_argument("--site", metavar="FILE", help="recalibration for a site, site-NAME.json, to use")
    parser.add_argument("--recalibrate_on", type=int, metavar="N", help="fit such a file on so many of the patients, "
                        "who are then not tested, and use it")  # fmt: skip
    parser.add_argument("--site_name", metavar="NAME", help="name of the site; default: the table's")
    parser.add_argument("--rexrank", action="store_true", help="write the predictions as ReXrank takes them as well")
    parser.set_defaults(run=run_evaluate, takes_config=True)


def run_evaluate(arguments: argparse.Namespace, options: Sequence[str]) -> None:
    """Run the evaluation and print a summary."""
    from vlm.evaluation.run import SiteOptions, test_adapter  # after the arguments: --help need not wait for PyTorch

    output = Path(arguments.output)
    site = SiteOptions(arguments.site, arguments.recalibrate_on, arguments.site_name)
    given = arguments.base, options, arguments.revision, site, arguments.rexrank
    test_adapter(arguments.adapter, arguments.data, output, *given)


def compare_options(parser: argparse.ArgumentParser) -> None:
    """Compare runs, paired by case."""
    parser.add_argument("runs", nargs="+", help="run folders; the others are compared with the first")
    parser.set_defaults(run=run_compare)


def run_compare(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Compare and print one table."""
    from vlm.evaluation.compare import compare

    print(compare(arguments.runs))


def drift_options(parser: argparse.ArgumentParser) -> None:
    """Compare the drafts of two times."""
    parser.add_argument("reference", help="drafts of a table, as `draft --input` wrote them")
    parser.add_argument("later", help="drafts of a later table by the same adapter")
    parser.add_argument("--output", required=True, help="new or empty folder to write")
    parser.add_argument("--findings", default="chest_en", help="vocabulary of the reports' findings, or its file")
    parser.set_defaults(run=run_drift)


def run_drift(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Compare and print what drifted."""
    from vlm.evaluation.drift import drift, lines

    output = Path(arguments.output)
    found = drift(Path(arguments.reference), Path(arguments.later), arguments.findings, output)
    print(*lines(found), f"page: {output / 'drift.html'}", sep="\n")
