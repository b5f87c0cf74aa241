"""The child process: `python -m optcore.serving ENGINE FOLDER TASK.json` prints one JSON object."""

import argparse
import json
import os
import re
import sys
import traceback
from importlib import import_module
from pathlib import Path

from optcore.serving.memory import OUT_OF_MEMORY, ran_out
from optcore.serving.serve import serve
from optcore.serving.session import ServingTask


def main() -> None:
    """Load, measure, answer. What an engine itself prints goes to standard error, which ends in the engine's log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine")
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", type=Path)
    options = parser.parse_args()
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # also what a library of C prints, which does not know `sys.stdout`
        try:
            room = import_module(f"optcore.serving.{re.sub(r'[.-]', '_', options.engine)}")
            served = serve(room.Session, options.folder, ServingTask(**json.loads(options.task.read_text())))
        except Exception as error:
            if not ran_out(error):
                raise
            traceback.print_exc()
            sys.exit(OUT_OF_MEMORY)
        answer.write(json.dumps(served._asdict(), allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
