"""Define the commands `serve` and `space`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlm.errors import UserError


def serve_options(parser: argparse.ArgumentParser) -> None:
    """Draft in a browser, and answer POST /v1/report."""
    add = parser.add_argument
    add("--adapter", action="append", help="adapter folder, Hub id, or a name such as demo, the default; several of "
        "one base, each after an --adapter of its own")  # fmt: skip
    add("--revision", help="commit, tag or branch of an adapter on the Hub")
    add("--site", metavar="FILE", help="recalibration for a site, of `evaluate --recalibrate_on`")
    add("--base", help="base model instead of the adapter's, such as a local copy")
    add("--engine", choices=["torch", "llamacpp"], default="torch",
        help="engine of the language model; llamacpp is quick on a CPU (extra `llamacpp`)")  # fmt: skip
    add_listen_options(parser)
    add("--findings", metavar="NAME", help="vocabulary of the table of findings, a name or a .yaml file; default: the "
        "adapter's")  # fmt: skip
    add("--abstain", action="store_true", help="give no draft that is among the least sure, or of a picture unlike "
        "those of training")  # fmt: skip
    add("--dicomweb", metavar="URL", help="archive whose studies are drafted by their UIDs, such as "
        "https://archive.example/dicom-web; extra `dicom`, credentials as for `draft`; needs a token")  # fmt: skip
    add("--dicomweb_http", action="store_true", help="allow plain http to another machine, which others can read")
    add("--store", action="store_true", help="store a draft there, as a Structured Report, if its request asks for it")
    add("--max_new_tokens", type=int, help="longest draft, in tokens; default: the adapter's")
    add("--max_upload", type=int, default=64, help="largest image file, MiB")
    add("--max_seconds", type=float, default=60, help="time limit of a request")
    add("--max_waiting", type=int, default=32, help="longest queue; further requests are refused")
    add("--batch_size", type=int, default=16, help="cases drafted together")
    parser.set_defaults(run=run_serve)


def add_listen_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every server: where it listens, and to whom it answers."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=7860, help="port to listen on")
    add("--allowed_hosts", nargs="+", default=[], metavar="NAME",
        help="host names to answer to, besides localhost and --host")  # fmt: skip
    add("--token_file", type=Path, help="file with the token that clients must send; or set CLINICAL_VLM_TOKEN")


def check_port(port: int) -> None:
    """Raise `UserError` for a number that is no port."""
    if not 0 < port < 65536:
        raise UserError("--port: must be between 1 and 65535")


def run_serve(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Check the ranges, then serve; raises `UserError` for values out of range."""
    for name in ("max_new_tokens", "max_upload", "max_seconds", "max_waiting", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name}: must be more than 0")
    check_port(arguments.port)
    arguments.adapter = arguments.adapter or ["demo"]
    for name in ("revision", "site", "dicomweb"):
        if getattr(arguments, name) is not None and len(arguments.adapter) > 1:
            raise UserError(f"--{name}: is of one adapter; give one --adapter alone, or no --{name}")
    if arguments.dicomweb:
        from vlm.inference.dicomweb import Archive, check_address

        Archive(check_address(arguments.dicomweb, arguments.dicomweb_http)).check()
    elif arguments.store or arguments.dicomweb_http:
        raise UserError("--store and --dicomweb_http: are for an archive; name it with --dicomweb")
    from vlm.app.serve import serve  # after the arguments: --help need not wait for the web libraries

    serve(arguments)


def space_options(parser: argparse.ArgumentParser) -> None:
    """Write a Hugging Face Space that serves the page with an adapter."""
    parser.add_argument("adapter", help="adapter folder, such as runs/demo/adapter, or Hub id")
    parser.add_argument("out", type=Path, help="new folder to write")
    parser.add_argument("--revision", help="commit, tag or branch of an adapter on the Hub")
    parser.set_defaults(run=run_space)


def run_space(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Write the folder, and print how it is pushed; raises `UserError` as `write_space` does."""
    from vlm.app.space import write_space

    names = write_space(arguments.adapter, arguments.out, arguments.revision)
    print(f"{arguments.out}: {', '.join(names)}")
    print(f"push it: hf upload USER/NAME {arguments.out} . --type space")
