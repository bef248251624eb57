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
    merge = commands.add_parser("merge", help="the base with the LoRA folded in, as a plain Transformers folder")
    merge.set_defaults(run=merge_adapter)
    gguf = commands.add_parser("gguf", help="the LoRA as a GGUF file that llama.cpp lays beside the base")
    gguf.set_defaults(run=write_gguf)
    for command, kind in ((merge, "folder"), (gguf, "file")):
        command.add_argument("adapter", help="adapter folder or Hub id")
        command.add_argument("out", type=Path, help=f"{kind} to write, new")
        command.add_argument("--revision", help="commit, tag or branch of an adapter on the Hub")
        command.add_argument("--base", help="base model in place of the one that the adapter names")
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
    from vlm.adapter.validate import seal_folder

    print(seal_folder(arguments.folder))


def merge_adapter(arguments: argparse.Namespace) -> None:
    from vlm.adapter.export.merge import merge

    parity = merge(arguments.adapter, arguments.out, arguments.base, arguments.revision)
    print(f"{arguments.out}: a plain language model; {arguments.out / 'adapter'}: the parts before it")
    print(f"against the base with its LoRA beside it, on {parity.cases} drawn cases: logits differ by "
          f"{parity.difference:.2g} at most (they spread by {parity.spread:.2g}), "
          f"{parity.same} of {parity.cases} greedy drafts the same to the letter")  # fmt: skip


def write_gguf(arguments: argparse.Namespace) -> None:
    from vlm.adapter.export.gguf import write_lora

    layers = write_lora(arguments.adapter, arguments.out, arguments.base, arguments.revision)
    print(f"{arguments.out}: the LoRA of {layers} layers; lay it beside the base: llama-server --lora {arguments.out}")


if __name__ == "__main__":
    run_program(main)
