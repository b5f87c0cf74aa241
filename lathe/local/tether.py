"""Starting a program of ours as a direct child, in a session of its own, that does not outlive us."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from signal import Signals

from lathe.local import child


def tethered(command: Sequence[str], *, folder: Path, death_signal: Signals) -> list[str]:
    """The command line that gets `death_signal` from the kernel when the *thread* that starts it ends, however it ends.

    Raises `FileNotFoundError` when the program is not on the PATH.
    """
    program = shutil.which(command[0])
    if program is None:
        raise FileNotFoundError(f"no such program: {command[0]}")
    launcher = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(int(death_signal))]
    return [*launcher, "same", str(folder), "--", str(Path(program).absolute()), *command[1:]]
