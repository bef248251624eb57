"""Servers on a free loopback port, for tests."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from vlm.app.connections import server_config

if TYPE_CHECKING:  # they import PyTorch, which not every server needs
    from vlm.app.about import Adapter
    from vlm.inference.engine import ReportEngine


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an app from a thread, as the program does; gives its address."""
    server = uvicorn.Server(server_config(app, port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def serving_drafts(engine: "ReportEngine", adapter: "Adapter", **limits: Any) -> Iterator[str]:
    """Serve the routes of the program without its page, within limits; gives the address."""
    from vlm.app.api import make_api
    from vlm.app.service import Limits, Service

    with Service(engine, Limits(**limits)) as service, serving(make_api(service, adapter)) as address:
        yield address
