"""A table drafted by a Ray cluster: rows go out in windows, each worker holds an engine, drafts come back in order.

The driver reads the table and writes the output as `vlm.inference.parts` does, so a job that was begun here goes on
with `accelerate launch`, and the other way round. Adapter, images and table must be seen under one path by all nodes,
or the adapter be a Hub id. Ray starts a lost worker again and gives its windows to others.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from vlm.errors import UserError
from vlm.inference.many import WINDOW, Counts, Row, TableJob
from vlm.inference.parts import Lines, Share, SharedJob


@dataclass(frozen=True)
class Cluster:
    """Where and by how many."""

    address: str = "local"
    """`local` starts Ray on this machine; `auto` or `ray://HOST:10001` joins a cluster."""
    workers: int = 1
    """Engines at work at the same time."""
    gpus: float = 0
    """GPUs of each; a share of one puts several small models on it."""


def draft_on_ray(
    job: TableJob, adapter: str, schema: Any, made_by: Mapping[str, Any], cluster: Cluster, engine: Mapping[str, Any]
) -> Counts:
    """Draft the rows that have no line yet; `engine` is what `draft_table` takes. The job is checked already.

    Raises `UserError` where Ray is missing or cannot be reached, and for what a worker's engine refuses.
    """
    ray = _connect(cluster)
    from ray.exceptions import RayError

    try:
        shared = SharedJob(job, Share())
        return shared.write(lambda rows: _drafted(ray, job, rows, adapter, cluster, engine), schema, made_by)
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise UserError(f"--ray: {last}; what was drafted is kept: go on with --resume") from None
    finally:
        ray.shutdown()


def _drafted(
    ray: Any, job: TableJob, rows: Iterator[Row], adapter: str, cluster: Cluster, engine: Mapping[str, Any]
) -> Iterator[Lines]:
    """The pipeline: windows of rows as JSON in, their lines out, in order."""
    windows = [{"rows": json.dumps(window)} for window in _windows(rows, WINDOW * job.batch_size)]
    if not windows:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True  # the parts are merged by their order
    context.enable_progress_bars = False  # ours is shown
    drafted = ray.data.from_items(windows, override_num_blocks=len(windows)).map_batches(
        Drafter,
        fn_constructor_args=(adapter, job, engine),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=cluster.workers),
        num_gpus=cluster.gpus,
        num_cpus=1,
    )
    for window in drafted.iter_rows():
        if window["refused"]:
            raise UserError(f"--ray: {window['refused']}; go on with --resume")
        yield json.loads(window["lines"])


def _windows(rows: Iterator[Row], size: int) -> Iterator[list[dict[str, Any]]]:
    while window := list(islice(rows, size)):
        yield [asdict(row) for row in window]


class Drafter:
    """A worker: loads an engine once, and drafts windows with it.

    What the engine refuses is an answer: of a worker that raises, Ray would start another, and again.
    """

    def __init__(self, adapter: str, job: TableJob, engine: Mapping[str, Any]) -> None:
        from vlm.inference.command import open_engine, prepare_libraries

        prepare_libraries()
        self.job = job
        self.refused = ""
        try:
            self.engine = open_engine(adapter, **engine)
        except UserError as error:
            self.refused = str(error)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """One window of rows as JSON → its lines as JSON, or why there are none."""
        if self.refused:
            return {"lines": [""], "refused": [self.refused]}
        (window,) = batch["rows"]
        rows = (Row(**row) for row in json.loads(window))
        lines = [line for part in self.job.draft(self.engine, rows) for line in part]
        return {"lines": [json.dumps(lines)], "refused": [""]}


def _connect(cluster: Cluster) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--ray: needs Ray; pip install 'clinical-vlm[ray]'") from None
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if cluster.address == "local":
        options |= {"include_dashboard": False, "num_cpus": max(cluster.workers, os.cpu_count() or 1)}
    try:
        host, colon, port = cluster.address.removeprefix("ray://").partition(":")
        if colon:  # Ray itself asks a host that does not answer for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=cluster.address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray {cluster.address}: {str(error).splitlines()[0]}") from None
    return ray
