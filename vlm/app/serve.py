"""Serve drafts in a browser, and `POST /v1/report`, in one process."""

import argparse
import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from vlm.app.connections import server_config
from vlm.app.failures import report_loop_failure
from vlm.app.guard import TOKEN_VARIABLE, Access, is_loopback, read_token
from vlm.errors import UserError

if TYPE_CHECKING:  # it imports PyTorch: a typing error should not wait for it
    from vlm.app.about import Adapter
    from vlm.app.archived_study import ArchivedStudies
    from vlm.app.service import Service
    from vlm.inference.engine import Engine


def serve(arguments: argparse.Namespace) -> None:
    """Listen, load the adapter and answer until a signal ends it."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing here is compiled
    listen(arguments, partial(make_app, arguments))


def listen(arguments: argparse.Namespace, make: Callable[[Access], Any]) -> None:
    """Reserve the port, make the app with the access rules of the options, and answer until a signal ends it."""
    access = Access.of(arguments.host, arguments.allowed_hosts, read_token(arguments.token_file))
    reserved = reserve(arguments.host, arguments.port)
    if not access.token and not is_loopback(reserved.getsockname()[0]):
        raise UserError(f"--host {arguments.host}: others can reach it, and anybody could use it; set "
                        f"{TOKEN_VARIABLE} or --token_file, or listen on 127.0.0.1 behind your proxy")  # fmt: skip
    app = make(access)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"http://{host}:{arguments.port}", flush=True)
    uvicorn.Server(server_config(app)).run(sockets=[reserved])


def reserve(host: str, port: int) -> socket.socket:
    """Bind the port before anything is loaded; raises `UserError` where it cannot be bound."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
    except (OSError, UnicodeError) as error:  # `UnicodeError` for an invalid host name
        reason = error.strerror if isinstance(error, OSError) else "no host name"
        raise UserError(f"--host, --port: cannot listen on {host[:80]}:{port}: {reason}") from None
    return reserved


def make_app(arguments: argparse.Namespace, access: Access) -> Any:
    """Load the adapters and add the page and the routes; raises `UserError` as `vlm.adapter.load` does."""
    from vlm.adapter import resolve

    if arguments.dicomweb and not access.token:
        raise UserError(f"--dicomweb: any user of this machine could read the archive by this server; set "
                        f"{TOKEN_VARIABLE} or --token_file")  # fmt: skip
    # Before the heavy imports: a typing error costs no wait.
    folders = [resolve(adapter, arguments.revision) for adapter in arguments.adapter]
    from vlm.app.about import Adapter, check_together
    from vlm.app.api import make_api
    from vlm.app.served import Served
    from vlm.app.service import Limits, Service

    adapters = [Adapter.of(folder, given) for folder, given in zip(folders, arguments.adapter, strict=True)]
    check_together(adapters)
    limits = Limits(
        upload=arguments.max_upload << 20,
        tokens=arguments.max_new_tokens,
        seconds=arguments.max_seconds,
        waiting=arguments.max_waiting,
        batch=arguments.batch_size,
    )
    engines = open_engines(arguments, folders)
    served = [Served(adapter.calibrated(engine.model.calibration), Service(engine, limits))
              for adapter, engine in zip(adapters, engines, strict=True)]  # fmt: skip
    (adapter, service), *others = served
    studies = _studies(arguments, service, adapter)
    app = make_api(service, adapter, access, others, studies)
    app.router.lifespan_context = partial(lifetime, [each.service for each in served])
    os.environ |= {"GRADIO_TEMP_DIR": str(service.folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    from vlm.app.explaining import why_unexplainable
    from vlm.app.page import add_page  # after the environment variables are set

    if reason := why_unexplainable(service.engine):
        print(f"explanations: off, {reason}", flush=True)
    return add_page(app, service, adapter, studies)


def _studies(arguments: argparse.Namespace, service: "Service", adapter: "Adapter") -> "ArchivedStudies | None":
    """Open the operator's archive to requests, if one is named."""
    if not arguments.dicomweb:
        return None
    from vlm.app.archived_study import ArchivedStudies
    from vlm.inference.dicomweb import Archive, check_address

    archive = Archive(check_address(arguments.dicomweb, arguments.dicomweb_http))
    stored = "a draft is stored there if its request asks for it" if arguments.store else "nothing is stored there"
    print(f"archive: {archive.address}; {stored}", flush=True)
    return ArchivedStudies(archive, service, adapter.software, arguments.store)


def open_engines(arguments: argparse.Namespace, folders: Sequence[Path]) -> "list[Engine]":
    """Load the adapters, all before one drafts; those of PyTorch's engine hold the weights of their base once."""
    from vlm.inference.engine import ReportEngine
    from vlm.inference.open_engine import open_engine, prepare_libraries
    from vlm.inference.shared_base import share_frozen

    prepare_libraries()
    engines: list[Engine] = []
    for folder, given in zip(folders, arguments.adapter, strict=True):
        print(f"loading {given} …", flush=True)
        engine = open_engine(str(folder), arguments.engine, arguments.base, findings=arguments.findings,
                             site=arguments.site, abstain=arguments.abstain)  # fmt: skip
        if engines and isinstance(engine, ReportEngine) and isinstance(engines[0], ReportEngine):
            print(f"the base is shared: {share_frozen(engine.model, engines[0].model) >> 20} MiB once", flush=True)
        engines.append(engine)
    return engines


@asynccontextmanager
async def lifetime(services: "Sequence[Service]", app: Any) -> AsyncIterator[None]:
    """Sweep while the server runs, and close the services when it ends: uvicorn passes a signal on only afterwards."""
    asyncio.get_running_loop().set_exception_handler(report_loop_failure)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(60)
            for service in services:
                await asyncio.to_thread(service.remove_expired)

    sweeping = asyncio.create_task(sweep())
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(service)
        yield
    sweeping.cancel()
