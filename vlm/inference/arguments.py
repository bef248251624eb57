"""The options of `infer.py`; nothing heavy is imported here, so that --help need not wait."""

import argparse
from typing import Any

from vlm.errors import UserError


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Read the command line; raises `UserError` for values out of range and for options that exclude each other."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="runs/demo/adapter", help="adapter folder or Hub id")
    parser.add_argument("--revision", help="commit, tag or branch of an adapter on the Hub")
    parser.add_argument("--base", help="base model in place of the one that the adapter names, such as a local copy")
    parser.add_argument("--engine", choices=["torch", "llamacpp", "vllm"], default="torch",
                        help="what runs the language model; llamacpp is quick on a CPU, extra `llamacpp`; vllm is a "
                             "server of its own")  # fmt: skip
    parser.add_argument("--vllm_url", metavar="URL", help="where vLLM serves, such as http://localhost:8000")
    parser.add_argument("--vllm_model", metavar="NAME", help="name of the LoRA, or of the merged model, there")
    parser.add_argument("--image", help="image file; leave it away for a case without one")
    parser.add_argument("--vitals", default="", help='"glucose=8.7, bp=145/90", or a JSON file of names and values')
    parser.add_argument("--max_new_tokens", type=int, default=96, help="longest draft")
    parser.add_argument("--max_seconds", type=float, default=600, help="time for a draft, or for those of a batch")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    many = parser.add_argument_group("many cases", "a table of them, whose columns of vitals are found by name")
    many.add_argument("--input", help="table: .csv, .tsv, .parquet or a folder of .parquet files")
    many.add_argument("--output", default="reports.jsonl", help="file of the drafts, in the order of the table")
    many.add_argument("--images", help="folder of the images; without it the table's own")
    many.add_argument("--image_column", default="image", help="column of the image's file name")
    many.add_argument("--id_column", help="column of the case's id; without it the rows are numbered")
    many.add_argument("--context_column", help="column of text to show in the prompt, as in training")
    many.add_argument("--batch_size", type=int, default=32, help="cases drafted together")
    many.add_argument("--resume", action="store_true", help="go on after the last whole line of the output")
    arguments = parser.parse_args()
    for name in ("max_new_tokens", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}: must be at least 1")
    if not arguments.max_seconds > 0:
        raise UserError("--max_seconds: must be more than 0")
    if (arguments.engine == "vllm") != bool(arguments.vllm_url and arguments.vllm_model):
        raise UserError("--engine vllm: goes with --vllm_url and --vllm_model, and they with it")
    if arguments.input and (arguments.image or arguments.vitals):
        raise UserError("--input: a table brings its own images and vitals; leave --image and --vitals away")
    return arguments


def engine_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What drafts: the engine, the revision of the adapter, its time, and the server where there is one."""
    drafts = {name: getattr(arguments, name) for name in ("engine", "revision", "max_seconds")}
    if arguments.engine != "vllm":
        return drafts
    from vlm.inference.vllm import VLLMServer

    return drafts | {"server": VLLMServer(arguments.vllm_url, arguments.vllm_model)}
