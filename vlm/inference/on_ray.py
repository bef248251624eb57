"""Draft a table on a Ray cluster: rows go out in windows, each worker holds an engine, drafts come back in order.

The table is read and the output written as `vlm.inference.parts` does, so a job begun here can resume with
`accelerate launch`, and the other way round. All nodes must see adapter, images and table under one path, or the
adapter must be a Hub id. Ray restarts a lost worker and reassigns its windows. Ray's driver runs in a process of its
own, since Ray exits its process when its services fail; that process is restarted with the windows left.
"""

import json
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

from vlm.errors import UserError, require
from vlm.inference.line_counts import Counts
from vlm.inference.many import WINDOW, TableJob
from vlm.inference.parts import Lines, MultiProcessJob, RankShare
from vlm.inference.rows import Row

WORKER_RESTARTS = 10
"""Most restarts of one worker: without a limit Ray would restart a failing one for ever."""
ATTEMPTS = 3
"""Exits of Ray's process, without a window drafted in between, after which it is not restarted."""
SHUTDOWN_SECONDS = 30


@dataclass(frozen=True)
class Cluster:
    """Address of a cluster, and the number and GPUs of the workers."""

    address: str = "local"
    """`local` starts Ray on this machine; `auto` or `ray://HOST:10001` joins a cluster."""
    workers: int = 1
    """Engines that run at the same time."""
    gpus: float = 0
    """GPUs of each; a fraction puts several small models on one."""

    def check(self) -> None:
        """Raise `UserError` for a host that does not answer: Ray itself would retry for minutes."""
        host, colon, port = self.address.removeprefix("ray://").partition(":")
        try:
            if colon:
                socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UserError(f"--ray {self.address}: {str(error).splitlines()[0]}") from None


def draft_on_ray(
    job: TableJob, adapter: str, schema: Any, metadata: Mapping[str, Any], cluster: Cluster, engine: Mapping[str, Any]
) -> Counts:
    """Draft the rows that have no line yet, for a checked job; `engine` takes the arguments of `draft_table`.

    Raises `UserError` where Ray is missing or cannot be reached, and for what a worker's engine refuses.
    """
    require("ray", "--ray: needs Ray")
    cluster.check()

    def draft(rows: Iterator[Row]) -> Iterator[Lines]:
        size = WINDOW * job.batch_size
        windows = [json.dumps([asdict(row) for row in window]) for window in iter(lambda: list(islice(rows, size)), [])]
        return map(json.loads, run_driver(_drive, windows, job, adapter, cluster, dict(engine)))

    return MultiProcessJob(job, RankShare()).write(draft, schema, metadata)


def _drive(
    connection: Connection, windows: list[str], job: TableJob, adapter: str, cluster: Cluster, engine: dict[str, Any]
) -> None:
    """Draft windows of rows (JSON) on Ray; sends the lines of each (JSON), in order."""
    ray = _connect(cluster)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # the parts are merged by row number
    context.enable_progress_bars = False  # our own progress bar is shown
    rows = [{"rows": window} for window in windows]
    drafted = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Drafter,
        fn_constructor_args=(adapter, job, engine),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=cluster.workers),
        num_gpus=cluster.gpus,
        num_cpus=1,
        max_restarts=WORKER_RESTARTS,
        max_task_retries=WORKER_RESTARTS,
    )
    for window in drafted.iter_rows():
        if window["refused"]:
            raise UserError(window["refused"])
        connection.send(("lines", window["lines"]))


class Drafter:
    """Ray worker that loads an engine once, and drafts windows with it.

    It returns an engine's `UserError` as an answer: Ray would restart a worker that raises, again and again.
    """

    def __init__(self, adapter: str, job: TableJob, engine: Mapping[str, Any]) -> None:
        from vlm.inference.open_engine import open_engine, prepare_libraries

        prepare_libraries()
        self.job = job
        self.refused = ""
        try:
            self.engine = open_engine(adapter, **engine)
        except UserError as error:
            self.refused = str(error)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Draft one window of rows as JSON; returns its lines as JSON, or the error."""
        if self.refused:
            return {"lines": [""], "refused": [self.refused]}
        (window,) = batch["rows"]
        rows = (Row.from_dict(row) for row in json.loads(window))
        lines = [line for part in self.job.draft(self.engine, rows) for line in part]
        return {"lines": [json.dumps(lines)], "refused": [""]}


def _connect(cluster: Cluster) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"needs all of Ray ({error.name} is missing); pip install 'clinical-vlm[ray]'") from None
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if cluster.address == "local":  # if it fails, the machine may be less busy at the next attempt
        cores = max(cluster.workers, os.cpu_count() or 1)
        ray.init(address="local", include_dashboard=False, num_cpus=cores, **options)
        return ray
    try:
        ray.init(address=cluster.address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{cluster.address}: {str(error).splitlines()[0]}") from None
    return ray


# ---------------------------------------------------------------------------------- Ray's own process


def run_driver(drive: Callable[..., None], windows: list[str], *arguments: Any) -> Iterator[str]:
    """Call `drive(connection, windows, *arguments)` in a process of its own; yields an answer for each window.

    It sends (`lines`, answer), or (`error`, text) for a user's mistake. A process that fails or dies is restarted
    with the windows left. Raises `UserError` when that does not help.
    """
    left, failures = deque(windows), 0
    while left:
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            for kind, text in _messages(drive, log.name, list(left), *arguments):
                if kind == "error":
                    raise UserError(f"--ray: {text}; go on with --resume")
                left.popleft()
                failures = 0
                yield text
            failures += bool(left)
            if failures == ATTEMPTS:
                said = (log.read().strip().splitlines() or ["Ray's process ended without a word"])[-1][:300]
                raise UserError(f"--ray: {said}; what was drafted is kept: go on with --resume")


def _messages(drive: Callable[..., None], log: str, *arguments: Any) -> Iterator[tuple[str, str]]:
    """Yield the messages of one process until it exits, in whatever way; closing this generator ends the process."""
    context = multiprocessing.get_context("spawn")  # a fork would share the locks of PyTorch's threads
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run_redirected, args=(drive, theirs, log, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            yield ours.recv()
    except (EOFError, OSError):
        process.join(SHUTDOWN_SECONDS)
    finally:
        ours.close()
        for end in (process.terminate, process.kill):  # nothing is lost: every draft has been received
            if process.is_alive():
                end()
                process.join(SHUTDOWN_SECONDS / 3)


def _run_redirected(drive: Callable[..., None], connection: Connection, log: str, *arguments: Any) -> None:
    """Call `drive` with all output redirected to a file: the log of Ray's services is not for the user."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        drive(connection, *arguments)
    except UserError as error:
        connection.send(("error", str(error)))
    connection.close()  # before Ray ends its services, which may end this process


def _end_with_parent() -> None:
    """End this process when its parent was killed and could not end it; Ray's services end with this one."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
