"""Runs of the programs, forked from a process that has imported everything: a run without the seconds of a start.

Reads a line of JSON from stdin: a job, answered when it began, a list of modules, answered when they are imported, or
nothing, answered when the last job has ended.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


class Forks:
    """The client: starts the process, and runs in it."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "tests.forks"]
        self._server = subprocess.Popen(
            command, cwd=PROJECT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._ask({"ranks": 0})  # wait until it is warm

    def start(
        self, *argv: str, said: Path, die_at: int = 0, ranks: int = 1, program: str = "train_lora",
        errors: Path | None = None, **environment: str,
    ) -> list[int]:  # fmt: skip
        """Start a run whose output goes to `said`; returns its processes. It dies at a change of its disk if asked."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        job = {"argv": argv, "said": str(said), "die_at": die_at, "ranks": ranks, "port": port, "program": program}
        return self._ask(job | {"errors": str(errors or said), "environment": environment})

    def wait(self) -> int:
        """The exit code of the run that was started, minus the signal that ended it; until now its number was taken."""
        return self._ask({})

    def run(self, *argv: str, said: Path, **options: Any) -> int:
        """Start and wait."""
        self.start(*argv, said=said, **options)
        return self.wait()

    def command(self, *argv: str, program: str = "infer") -> subprocess.CompletedProcess[str]:
        """Run a program as `subprocess.run` with captured output would."""
        with TemporaryDirectory() as folder:
            said, errors = Path(folder, "stdout"), Path(folder, "stderr")
            code = self.run(*argv, said=said, errors=errors, program=program)
            return subprocess.CompletedProcess(argv, code, said.read_text("utf-8"), errors.read_text("utf-8"))

    def warm(self, *modules: str) -> "Forks":
        """Import modules that only some programs need, before runs of theirs are forked; returns itself."""
        self._ask(modules)
        return self

    def close(self) -> None:
        """End the process."""
        self._server.communicate()

    def _ask(self, job: Any) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def serve() -> None:
    """Import what a run needs, then fork a process, or several that talk over gloo, for each job."""
    import bitsandbytes  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    import vlm.evaluation.evaluate
    import vlm.inference.command
    import vlm.training.run  # noqa: F401
    from vlm.config.parsing import parse_config

    parse_config([])
    torch.set_num_threads(1)
    processes: list[int] = []
    for line in sys.stdin:
        job = json.loads(line)
        if isinstance(job, list):
            print(len([importlib.import_module(name) for name in job]), flush=True)
        elif job:
            processes = [fork(job, rank) for rank in range(job["ranks"])]
            print(json.dumps(processes), flush=True)
        else:
            codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
            print(max(codes, key=abs), flush=True)


def fork(job: dict, rank: int) -> int:
    """The process of a new run."""
    process = os.fork()
    if process == 0:
        try:
            run(job, rank)
        except BaseException:
            traceback.print_exc()
        os._exit(70)
    return process


def run(job: dict, rank: int) -> None:
    """What `python PROGRAM.py` does, and `torchrun` before it where there are several."""
    sys.stdin.close()
    for number, file in ((1, job["said"]), (2, job["errors"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if job["ranks"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["ranks"]),
                       "LOCAL_WORLD_SIZE": str(job["ranks"]), "MASTER_ADDR": "localhost",
                       "MASTER_PORT": str(job["port"]), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    os.environ |= job["environment"]
    if job["die_at"]:
        from tests.faults import Disk, install

        install(Disk(job["die_at"], lambda change: os._exit(137)))
    from vlm.errors import run_program

    sys.argv = ["clinical-vlm" if job["program"] == "vlm.cli" else f"{job['program']}.py", *job["argv"]]
    code = 0
    try:
        run_program(importlib.import_module(job["program"]).main)
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
