"""Artifacts in a folder, of this machine or shared by several. The engine writes into it, and there they stay."""

import re
import shutil
from pathlib import Path

from obstore.store import LocalStore

from api.errors import StoreAway
from api.files.objects import Objects


class Folder(Objects):
    """`<root>/<job_id>/<epoch>/<path>`."""

    def __init__(self, root: Path) -> None:
        super().__init__(LocalStore(root, mkdir=True))
        self.root = root

    def size_bytes(self, name: str) -> int | None:
        """Size of a file; None when there is none. A link that leads out of its attempt's folder is as good as none."""
        parts = Path(name).parts
        home = (self.root / Path(*parts[:2])).resolve()
        try:
            inside = self.root.joinpath(*parts).resolve().is_relative_to(home)
        except (OSError, ValueError):  # no name of a file
            return None
        return super().size_bytes(name) if inside else None

    def remove(self, prefix: str) -> None:
        """Remove a job's folder, or an attempt's with what it left beside it half-written. None is as good."""
        place = self.root / prefix
        unfinished = re.compile(rf"\.?{re.escape(place.name)}(?!\w)")
        beside = place.parent.iterdir() if place.parent.is_dir() else ()
        for path in [each for each in beside if unfinished.match(each.name)]:
            shutil.rmtree(path, ignore_errors=True)
            if path.exists():
                raise StoreAway(f"{prefix} cannot be removed", remedy="look at the permissions of LATHE_DATA_DIR")
