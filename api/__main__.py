"""`python -m api`: the web service on LATHE_HOST and LATHE_PORT."""

import uvicorn

from api.main import create_app
from api.settings import Settings

GRACE_seconds = 2
"""Open event streams never end by themselves: without a limit the server would not stop."""


def main() -> None:
    """Serve until SIGTERM."""
    settings = Settings()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        server_header=False,
        access_log=False,
        log_config=None,  # the application has set its own form of lines
        timeout_graceful_shutdown=GRACE_seconds,
    )


if __name__ == "__main__":
    main()
