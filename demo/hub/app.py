"""The peer as a web application, and as a server on a port of this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.convertors import Convertor, register_url_convertor

from demo.hub.access import Door, User
from demo.hub.faults import Faults
from demo.hub.pages import page_routes
from demo.hub.refusal import Refusal, answer_refusal
from demo.hub.routes_files import file_routes
from demo.hub.routes_repos import repo_routes
from demo.hub.routes_upload import PART_bytes, upload_routes
from demo.hub.signature import Signer
from demo.hub.store import Store


class _Repo(Convertor[str]):
    regex = "[^/]+(?:/[^/]+)?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Kind(_Repo):
    regex = "models|datasets"


register_url_convertor("repo", _Repo())
register_url_convertor("kind", _Kind())


def create_app(root: Path, users: dict[str, User], *, part_bytes: int = PART_bytes) -> FastAPI:
    """The peer over a folder, for the given tokens. `app.state` has its `store` and `faults`."""
    app = FastAPI(title="Local Hub peer", openapi_url=None)
    door, signer, faults = Door(Store(root), users), Signer(), Faults()
    app.state.store, app.state.faults = door.store, faults
    app.middleware("http")(faults.between)
    app.add_exception_handler(Refusal, answer_refusal)
    routers = (repo_routes(door), upload_routes(door, signer, part_bytes), file_routes(door), page_routes(door))
    for router in routers:
        app.include_router(router)
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
