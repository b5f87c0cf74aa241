"""The peer as a web application, and as a server on a port of this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from demo.hub import pages, routes_commit, routes_discussions, routes_files, routes_lfs, routes_repos
from demo.hub.access import Door, User
from demo.hub.faults import Faults
from demo.hub.refusal import Refusal, answer_refusal
from demo.hub.signature import Signer
from demo.hub.store import Store

PART_bytes = 16 * 1024 * 1024


def create_app(root: Path, users: dict[str, User], *, part_bytes: int = PART_bytes) -> FastAPI:
    """The peer over a folder, for the given tokens. `app.state` has its `store` and `faults`."""
    app = FastAPI(title="Local Hub peer", openapi_url=None)
    store, faults = Store(root), Faults()
    app.state.store, app.state.faults = store, faults
    app.state.door, app.state.signer, app.state.part_bytes = Door(store, users), Signer(), part_bytes
    app.middleware("http")(faults.between)
    app.add_exception_handler(Refusal, answer_refusal)
    for module in (routes_repos, routes_commit, routes_discussions, routes_lfs, routes_files, pages):
        app.include_router(module.router)
    return app


@contextmanager
def serving(app: FastAPI, port: int = 0) -> Iterator[str]:
    """Serve in a thread of this process; gives the address, and stops on leaving."""
    listener = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, **QUIET))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="hub-peer")
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


QUIET: dict[str, Any] = {"log_level": "warning", "ws": "none", "lifespan": "off", "timeout_graceful_shutdown": 2}
