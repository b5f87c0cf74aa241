"""Signatures for results that are published apart: the one over the whole artifact holds for none of its parts."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from optcore import signing
from optcore.links import link
from optcore.manifest import SIGNATURE
from worker.hub_files import Files


@dataclass(frozen=True)
class Signer:
    """Signs what goes to one place. A signature is another one each time, so a push that is tried again in another
    process replaces that file alone."""

    key: Path
    scratch: Path
    """A folder that does not exist yet, on the disk of the artifact where possible: nothing is copied then."""

    def __call__(self, files: Files) -> bytes:
        """The signature over these files as they will lie on the Hub. Raises what `optcore.signing.sign` does."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        try:
            for path, file in files.items():
                target = self.scratch / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(file.content, bytes):
                    target.write_bytes(file.content)
                else:
                    link(file.content, target)
            signing.sign(self.scratch, self.key)
            return (self.scratch / SIGNATURE).read_bytes()
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
