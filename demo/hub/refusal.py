"""The answers that are no success, in the form in which the Hub gives them."""

from fastapi import Request
from fastapi.responses import JSONResponse, Response


class Refusal(Exception):
    """Becomes an answer with the Hub's error headers; `code` is what clients look at."""

    def __init__(self, status: int, message: str, *, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}


def no_repository(anonymous: bool) -> Refusal:
    """Absent, or private and not yours: the Hub does not say which, and asks strangers who they are."""
    if anonymous:
        return Refusal(401, "Invalid username or password.", code="RepoNotFound")
    return Refusal(404, "Repository not found", code="RepoNotFound")


def no_revision(revision: str) -> Refusal:
    """No branch, tag or commit of that name."""
    return Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def no_entry(path: str, commit: str) -> Refusal:
    """No such file in that commit."""
    return Refusal(404, f"Entry not found: {path}", code="EntryNotFound", headers={"X-Repo-Commit": commit})


def answer_refusal(request: Request, refusal: Exception) -> Response:
    """The exception handler."""
    assert isinstance(refusal, Refusal)
    headers = {"X-Error-Message": refusal.message.replace("\n", " "), **refusal.headers}
    if refusal.code:
        headers["X-Error-Code"] = refusal.code
    return JSONResponse({"error": refusal.message}, refusal.status, headers)
