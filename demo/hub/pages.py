"""What a person sees in a browser: the repositories, and the files of one."""

from html import escape

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from demo.hub.access import Door
from demo.hub.deps import TheDoor
from demo.hub.refusal import Refusal
from demo.hub.repository import MAIN, PULL, Repository

_SIGN_IN = {"WWW-Authenticate": 'Basic realm="a token, as the password"'}
_STYLE = "body{font:15px/1.5 system-ui;max-width:56rem;margin:2em auto;padding:0 1em}td{padding:.2em 1em .2em 0}"


router = APIRouter()


@router.get("/")
def index(door: TheDoor) -> Response:
    shown = [repository for repository in door.store.all() if not repository.state["private"]]
    items = "".join(f'<li><a href="{_address(one)}">{escape(one.id)}</a></li>' for one in shown)
    return _page("Local Hub peer", f"<ul>{items}</ul>")


@router.get("/datasets/{id:repo}")
def dataset(request: Request, door: TheDoor, id: str) -> Response:
    return _show(door, request, "datasets", id)


@router.get("/{id:repo}/tree/{commit:path}")
@router.get("/{id:repo}/commit/{commit:path}")
def commit(request: Request, door: TheDoor, id: str, commit: str) -> Response:
    return _show(door, request, "models", id, commit)


@router.get("/{id:repo}/discussions/{num:int}")
def discussion(request: Request, door: TheDoor, id: str, num: int) -> Response:
    return _show(door, request, "models", id, f"{PULL}{num}")


@router.get("/{id:repo}")
def model(request: Request, door: TheDoor, id: str) -> Response:
    return _show(door, request, "models", id)


def _show(door: Door, request: Request, kind: str, id: str, revision: str = MAIN) -> Response:
    try:
        repository = door.to_see(request, kind, id)
    except Refusal as refusal:
        raise Refusal(refusal.status, refusal.message, code=refusal.code, headers=_SIGN_IN) from None
    commit = repository.resolve(revision)
    rows = "".join(
        f'<tr><td><a href="{_address(repository)}/resolve/{commit.id}/{escape(path)}">{escape(path)}</a></td>'
        f"<td>{entry.size:,} bytes</td><td>{'LFS' if entry.sha256 else ''}</td></tr>"
        for path, entry in sorted(commit.files.items())
    )
    visible = "private" if repository.state["private"] else "public"
    about = f"{visible} · commit <code>{commit.id[:12]}</code> · {escape(commit.title)} · {commit.date}"
    return _page(repository.id, f"<p>{about}</p><table>{rows}</table>")


def _address(repository: Repository) -> str:
    return ("/" if repository.kind == "models" else "/datasets/") + escape(repository.id)


def _page(title: str, body: str) -> Response:
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
    return HTMLResponse(f"<!doctype html>{head}<h1>{escape(title)}</h1>{body}")
