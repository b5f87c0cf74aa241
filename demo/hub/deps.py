"""What the routes are made of: the path pieces `{id:repo}` and `{kind:kind}`, and what `create_app` put together."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.convertors import Convertor, register_url_convertor

from demo.hub.access import Door
from demo.hub.signature import Signer


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


def _door(request: Request) -> Door:
    door: Door = request.app.state.door
    return door


def _signer(request: Request) -> Signer:
    signer: Signer = request.app.state.signer
    return signer


def _part_bytes(request: Request) -> int:
    part_bytes: int = request.app.state.part_bytes
    return part_bytes


TheDoor = Annotated[Door, Depends(_door)]
TheSigner = Annotated[Signer, Depends(_signer)]
PartBytes = Annotated[int, Depends(_part_bytes)]
"""LFS objects above this size come in parts of it."""
