"""`python -m vlm.adapter push|seal|merge|gguf`: share an adapter on the Hub, or export it for other programs."""

import argparse
from pathlib import Path

from vlm.errors import run_program


def main() -> None:
    parser = argparse.ArgumentParser(prog="vlm.adapter", description=__doc__)
    commands = parser.add_subparsers(required=True)
    push = commands.add_parser("push", help="share an adapter folder on the Hugging Face Hub, as one commit")
    push.add_argument("folder", type=Path, help="adapter folder, such as runs/demo/adapter")
    push.add_argument("repo", help="USER/NAME on the Hub; made if it is not there")
    push.add_argument("--private", action="store_true", help="make the repository a private one")
    push.add_argument("--revision", metavar="BRANCH", help="branch to push to, made if it is not there")
    push.add_argument("--message", default="Adapter", help="message of the commit")
    push.add_argument("--license", help="licence of the adapter, as the Hub writes it: apache-2.0")
    push.add_argument("--dataset", action="append", default=[], metavar="ID", help="data it was trained on, by Hub id")
    push.add_argument("--language", metavar="CODE", help="language of its reports, if it is not English (en)")
    push.add_argument("--base_model", metavar="ID", help="Hub id of the base, where it came from a wheel")
    push.set_defaults(run=push_adapter)
    seal = commands.add_parser(
        "seal", help="write the manifest anew, after an edit or for an adapter of an earlier version"
    )
    seal.add_argument("folder", type=Path, help="adapter folder, such as runs/demo/adapter")
    seal.set_defaults(run=seal_adapter)
    arguments = parser.parse_args()
    arguments.run(arguments)


def push_adapter(arguments: argparse.Namespace) -> None:
    from vlm.adapter.hub import push
    from vlm.adapter.metadata import CardDetails

    details = CardDetails(arguments.license, tuple(arguments.dataset), arguments.language, arguments.base_model)
    pushed = push(arguments.folder, arguments.repo, arguments.private, arguments.revision, arguments.message, details)
    print(pushed.url)
    if pushed.commit == pushed.before:
        print(f"commit {pushed.commit}: nothing has changed since")
    else:
        print(f"commit {pushed.commit}" + (f", after {pushed.before}" if pushed.before else ""))
    if pushed.license is None:
        print("its card names no licence, so nobody else may use it; say which with --license")


def seal_adapter(arguments: argparse.Namespace) -> None:
    from vlm.adapter.reading import seal_folder

    print(seal_folder(arguments.folder))


if __name__ == "__main__":
    run_program(main)
