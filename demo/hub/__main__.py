"""`python -m demo.hub --root DIR [--port 0] [--token [USER:]TOKEN]`: serve until stopped."""

import argparse
import os
import socket
from pathlib import Path

import uvicorn

from demo.hub.access import User
from demo.hub.app import QUIET, create_app

TOKEN_VARIABLE = "DEMO_HUB_TOKEN"  # noqa: S105 - the name of a variable


def main() -> None:
    """Print the address on the first line, then serve."""
    parser = argparse.ArgumentParser(prog="python -m demo.hub", description="A local peer of the Hugging Face Hub.")
    parser.add_argument("--root", type=Path, required=True, help="folder that keeps the repositories")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--token", action="append", default=[], help="[USER:]TOKEN; others can read arguments, so "
                        f"prefer the environment variable {TOKEN_VARIABLE}")  # fmt: skip
    arguments = parser.parse_args()
    tokens = arguments.token + ([os.environ[TOKEN_VARIABLE]] if TOKEN_VARIABLE in os.environ else [])
    app = create_app(arguments.root, dict(_user(token) for token in tokens))
    listener = socket.create_server(("127.0.0.1", arguments.port))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, **QUIET)).run(sockets=[listener])


def _user(argument: str) -> tuple[str, User]:
    name, _, token = argument.rpartition(":")
    return token, User(name or "demo")


main()
