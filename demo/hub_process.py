"""The local Hub peer as a process beside the demo."""

import os
import secrets
import subprocess
import sys
from pathlib import Path
from signal import SIGTERM
from types import TracebackType
from typing import Self

from lathe.local.tether import tethered

ROOT = Path(__file__).resolve().parents[1]


class HubProcess:
    """`with HubProcess(folder) as hub:` gives `hub.url` and a write token `hub.token`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = f"hf_{secrets.token_hex(17)}"
        self.url = ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "demo.hub", "--root", str(self.folder)]
        self._process = subprocess.Popen(
            tethered(command, folder=ROOT, death_signal=SIGTERM),
            env={**os.environ, "DEMO_HUB_TOKEN": f"demo:{self.token}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the local Hub peer did not start; its error is above")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
