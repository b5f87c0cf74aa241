"""Build the site of the documentation: a link or an anchor that leads nowhere is an error, as is any warning."""

import os
import subprocess
import sys
from pathlib import Path

CONFIG = "zensical.toml"
BUILDER = "from zensical.main import cli; cli()"


class SiteError(Exception):
    """The site was not built; the text is what the builder said."""


def build(root: Path) -> str:
    """Build the site of the checkout in `root` into the folder that its configuration names; what the builder said."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", BUILDER, "build", "--strict", "--clean", "--config-file", CONFIG],
        cwd=root,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{done.stdout}{done.stderr}"
    if done.returncode != 0 or "Warning" in said:
        raise SiteError(said)
    return said
