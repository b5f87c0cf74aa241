"""What can go wrong with an embedded server.

LocalServerError
├── ServerNotFound    no URL, no wheel and no binary on the PATH
├── ServerFailed      it ended, or did not get ready in time; the message ends with its own last words
└── FolderBusy        another process holds the data folder and does not let go
"""


class LocalServerError(Exception):
    """Base of the tree. The text says what happened; `remedy` says what to do."""

    def __init__(self, message: str, *, remedy: str) -> None:
        super().__init__(f"{message} {remedy}")
        self.message = message
        self.remedy = remedy


class ServerNotFound(LocalServerError):
    """No URL, no wheel and no binary on the PATH."""


class ServerFailed(LocalServerError):
    """It ended, or did not get ready in time."""


class FolderBusy(LocalServerError):
    """Another process holds the data folder and does not let go."""
