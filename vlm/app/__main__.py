"""`python -m vlm.app --adapter ADAPTER`: drafts in a browser, and `POST /v1/report`, in one process."""

import argparse
import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.app.failures import report_loop_failure
from vlm.app.guard import TOKEN_VARIABLE, Access, is_loopback, read_token
from vlm.errors import UserError, run_program

if TYPE_CHECKING:  # after the arguments: --help need not wait for PyTorch
    from vlm.app.service import Service


def parse_arguments() -> argparse.Namespace:
    """Read the command line; raises `UserError` for values out of range."""
    parser = argparse.ArgumentParser(prog="vlm.app", description=__doc__)
    parser.add_argument("--adapter", default="runs/demo/adapter", help="adapter folder or Hub id")
    parser.add_argument("--base", help="base model in place of the one that the adapter names, such as a local copy")
    parser.add_argument("--engine", choices=["torch", "llamacpp"], default="torch",
                        help="what runs the language model; llamacpp is quick on a CPU, extra `llamacpp`")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--allowed_hosts", nargs="+", default=[], metavar="NAME",
                        help="names by which the server is asked, besides localhost and --host")  # fmt: skip
    parser.add_argument("--token_file", type=Path,
                        help=f"file of the token that clients must send; or set {TOKEN_VARIABLE}")  # fmt: skip
    parser.add_argument("--max_new_tokens", type=int, default=96, help="longest draft")
    parser.add_argument("--max_upload", type=int, default=64, help="largest image file, MiB")
    parser.add_argument("--max_seconds", type=float, default=60, help="from asking to the last word")
    parser.add_argument("--max_waiting", type=int, default=32, help="drafts in the queue; one more is refused")
    parser.add_argument("--batch_size", type=int, default=16, help="drafts written together; torch only")
    arguments = parser.parse_args()
    for name in ("max_new_tokens", "max_upload", "max_seconds", "max_waiting", "batch_size"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name}: must be more than 0")
    if not 0 < arguments.port < 65536:
        raise UserError("--port: must be between 1 and 65535")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing here is compiled
    access = Access.of(arguments.host, arguments.allowed_hosts, read_token(arguments.token_file))
    reserved = reserve(arguments.host, arguments.port)
    if not access.token and not is_loopback(reserved.getsockname()[0]):
        raise UserError(f"--host {arguments.host}: others can reach it, and anybody could use it; set "
                        f"{TOKEN_VARIABLE} or --token_file, or listen on 127.0.0.1 behind your proxy")  # fmt: skip
    try:
        import uvicorn

        from vlm.app.connections import server_config

        app = make_app(arguments, access)
    except ImportError as error:
        raise UserError(f"{error.name}: not installed; pip install 'clinical-vlm[app]'") from None
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"http://{host}:{arguments.port}", flush=True)
    uvicorn.Server(server_config(app)).run(sockets=[reserved])


def reserve(host: str, port: int) -> socket.socket:
    """Bind the port before anything is loaded; raises `UserError` where it cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
    except (OSError, UnicodeError) as error:  # the latter of what cannot be a name
        reason = error.strerror if isinstance(error, OSError) else "no host name"
        raise UserError(f"--host, --port: cannot listen on {host[:80]}:{port}: {reason}") from None
    return reserved


def make_app(arguments: argparse.Namespace, access: Access) -> Any:
    """Load the adapter and put page and routes on it; raises `UserError` as `vlm.adapter.load` does."""
    from vlm.adapter import resolve

    folder = resolve(arguments.adapter)  # before the other libraries: a typing error costs no wait
    from vlm.app.about import Adapter
    from vlm.app.api import make_api
    from vlm.app.service import Limits, Service
    from vlm.inference.command import prepare_libraries
    from vlm.inference.open_engine import make_engine

    adapter = Adapter.of(folder)
    limits = Limits(
        upload=arguments.max_upload << 20,
        tokens=arguments.max_new_tokens,
        seconds=arguments.max_seconds,
        waiting=arguments.max_waiting,
        batch=arguments.batch_size,
    )
    print(f"loading {arguments.adapter} …", flush=True)
    prepare_libraries()
    service = Service(make_engine(arguments.engine, folder, arguments.base), limits)
    app = make_api(service, adapter, access)
    app.router.lifespan_context = partial(lifetime, service)
    os.environ |= {"GRADIO_TEMP_DIR": str(service.folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    from vlm.app.explaining import why_not
    from vlm.app.page import add_page  # after the variables

    if reason := why_not(service.engine):
        print(f"explanations: off, {reason}", flush=True)
    return add_page(app, service, adapter)


@asynccontextmanager
async def lifetime(service: "Service", app: Any) -> AsyncIterator[None]:
    """Sweep while the server runs, and close the service when it ends: uvicorn passes a signal on only afterwards."""
    asyncio.get_running_loop().set_exception_handler(report_loop_failure)

    async def sweep() -> None:
        while True:
            await asyncio.sleep(60)
            await asyncio.to_thread(service.sweep)

    sweeping = asyncio.create_task(sweep())
    with service:
        yield
    sweeping.cancel()


if __name__ == "__main__":
    run_program(main)
