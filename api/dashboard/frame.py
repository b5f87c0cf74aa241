"""The frame around every page: which page it is, and the theme that its reader chose."""

import re
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

from fastapi import Request

Theme = Literal["system", "light", "dark"]
THEMES: tuple[Theme, ...] = get_args(Theme)
THEME_COOKIE = "lathe_theme"
ROOMS = (
    ("/", "Jobs"),
    ("/new", "New job"),
    ("/compare", "Compare"),
    ("/workers", "Workers"),
    ("/settings", "Settings"),
)
"""What the navigation leads to."""

_JOB = "job_[0-9a-v]{26}"
_OWN_PAGE = re.compile(
    rf"/(?:new(?:\?(?:like|template)=[\w-]{{1,64}})?|jobs/{_JOB}(?:/[a-z]+)?|workers|compare(?:\?job={_JOB}(?:&job={_JOB}){{0,11}})?"
    r"|settings(?:/[a-z_]+){0,2}(?:/whe_[0-9a-v]{26})?)?"
)


@dataclass(frozen=True)
class Frame:
    """What the templates of all pages know."""

    path: str = "/"
    """Of the page."""
    back: str = "/"
    """Where a form that every page has leads back to: the page with its query, where that is one of ours."""
    theme: Theme = "system"
    themes: tuple[Theme, ...] = THEMES
    rooms: tuple[tuple[str, str], ...] = ROOMS

    def current(self, room: str) -> str:
        """The value of `aria-current` of a link to that room; empty elsewhere."""
        if self.path == room:
            return "page"
        return "true" if self.path.startswith("/jobs/" if room == "/" else f"{room}/") else ""


_PLAIN = Frame()
_present: ContextVar[Frame] = ContextVar("frame", default=_PLAIN)


def enter(request: Request) -> None:
    """From here on this request's pages are framed. The context is the request's own, and so are its threads'."""
    chosen = request.cookies.get(THEME_COOKIE, "")
    path, address = request.url.path, with_query(request)
    back = address if is_own(address) else own_page(path)
    _present.set(Frame(path, back, chosen if chosen in THEMES else "system"))


def present() -> Frame:
    """The frame of the request that is being answered."""
    return _present.get()


def with_query(request: Request) -> str:
    """The address that was asked for, without the host."""
    return f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path


def own_page(address: str) -> str:
    """A page of ours that can be gone back to; never an address that somebody else chose."""
    return address if is_own(address) else "/"


def is_own(address: str) -> bool:
    """Whether it is a page of ours, with a query that means the same again."""
    return _OWN_PAGE.fullmatch(address) is not None
