"""What a job will cost: GPU hours, memory, bytes, and the engine that suits it.

    python -m vlm.plan --config configs/single_gpu.yaml --studies 1e6 --gpu H100
    python -m vlm.plan --config configs/single_gpu.yaml --studies 1e3 1e6 1e9 --base 135M 1B 8B 70B --gpu H100

Several studies, bases or GPUs give a row each. Options that are not its own go to the config, such as
`--train.epochs 5`; the plan is of `train.epochs`, and leaves `train.max_steps` aside. Nothing is loaded and nothing is
run, but for `--gpu cpu`, whose rates are measured in seconds. docs/scale.md says what the numbers rest on.
"""

import argparse
import dataclasses
import json
from typing import Any

from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.errors import UserError, run_program
from vlm.plan.cost import Job, guessed_tokens
from vlm.plan.gpus import CPU, GPUS, Machine, find_gpu
from vlm.plan.plan import make_plan
from vlm.plan.shapes import base_of, cnn_of
from vlm.plan.tables import many_lines, plan_lines
from vlm.plan.terms import Terms


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Config]:
    """The arguments, and the config with the options that are its own."""
    parser = argparse.ArgumentParser(
        prog="vlm.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", required=True, help="YAML file of the job")
    add("--studies", type=float, nargs="+", default=[1e6], help="studies to train on, and to draft (1e6)")
    add("--base", nargs="+", default=[None], help="135M, 1B, 8B or 70B in place of the config's base")
    add(
        "--gpu",
        nargs="+",
        default=["H100"],
        help=f"{', '.join(GPUS)} or {CPU} (H100)",
    )
    add("--gpus", type=int, help="number of devices; as few as end within --days, if not given")
    add("--days", type=float, default=7.0, help="time in which training, and drafting, shall end (7)")
    add("--report_tokens", type=float, default=120, help="mean length of a reference report (120)")
    add("--draft_tokens", type=float, help="mean length of a draft; as long as the reports, if not given")
    add("--padding", type=float, default=0.2, help="share of further tokens that only fill a batch (0.2)")
    add("--study_kb", type=float, default=300, help="encoded image of a study, kB (300)")
    add("--decode_ms", type=float, default=20, help="CPU time to read and decode it, ms (20)")
    add("--cores", type=int, default=8, help="CPU cores that read images for one device (8)")
    add("--mfu", type=float, help="share of a GPU's peak reached in matrix products (0.5)")
    add("--mbu", type=float, help="share of a GPU's memory bandwidth reached (0.7)")
    add("--json", action="store_true", help="print JSON, one object a plan")
    arguments, rest = parser.parse_known_args(argv)
    config, _ = parse_config(["--config", arguments.config, *rest])
    _check(arguments)
    return arguments, config


def _check(arguments: argparse.Namespace) -> None:
    counts = {"studies": min(arguments.studies), **{name: getattr(arguments, name) for name in POSITIVE}}
    for name, value in counts.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name}: must be more than 0, not {value:g}")
    for name in ("mfu", "mbu"):
        value = getattr(arguments, name)
        if value is not None and value > 1:
            raise UserError(f"--{name}: a share between 0 and 1, not {value:g}")
    if arguments.padding < 0:
        raise UserError(f"--padding: a share of at least 0, not {arguments.padding:g}")


POSITIVE = ("gpus", "days", "report_tokens", "draft_tokens", "study_kb", "decode_ms", "cores", "mfu", "mbu")


def terms_of(arguments: argparse.Namespace, config: Config, studies: float) -> Terms:
    """The arguments as the terms of a plan."""
    draft = arguments.draft_tokens or arguments.report_tokens
    return Terms(
        studies, config.train.epochs, draft, 1e3 * arguments.study_kb, arguments.decode_ms / 1e3, arguments.cores,
        arguments.days, arguments.gpus,
    )  # fmt: skip


def machine_of(name: str, arguments: argparse.Namespace, job: Job) -> Machine:
    """The GPU that was named, or this machine's CPU, measured."""
    if name.lower() != CPU:
        return find_gpu(name, arguments.mfu, arguments.mbu)
    from vlm.plan.measured import measure_cpu

    cases = job.config.train.micro_batch_size
    rows, length = int(job.read_tokens(cases)), int(job.tokens.whole)
    return measure_cpu(job.base, rows, cases, length, job.config.data.image_size)


def main(argv: list[str] | None = None) -> None:
    arguments, config = parse(argv)
    cnn, tokens = cnn_of(config.model.vision), guessed_tokens(config, arguments.report_tokens, arguments.padding)
    bases = [base_of(config.model.llm, preset) for preset in arguments.base]
    jobs = [Job(config, base, cnn, tokens) for base in bases]
    machines = [(job, machine_of(name, arguments, job)) for job in jobs for name in arguments.gpu]
    terms = [terms_of(arguments, config, studies) for studies in arguments.studies]
    planned = [(make_plan(job, machine, term), job, machine, term) for job, machine in machines for term in terms]
    if arguments.json:
        values: list[dict[str, Any]] = [dataclasses.asdict(plan) for plan, *_ in planned]
        print(json.dumps(values if len(values) > 1 else values[0], indent=2))
    elif len(planned) > 1:
        print(*many_lines(plan for plan, *_ in planned), sep="\n")
    else:
        print(*plan_lines(*planned[0]), sep="\n")


if __name__ == "__main__":
    run_program(main)
