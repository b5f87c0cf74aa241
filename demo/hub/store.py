"""Every repository below one folder, and the LFS objects that they share."""

import hashlib
import re
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

from demo.hub.refusal import Refusal
from demo.hub.repository import Repository
from demo.hub.xet import XetStore

_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


class Store:
    """Repositories, LFS objects and xet objects on disk. `lock` is held by whoever changes something."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.lock = threading.RLock()
        self.xet = XetStore(self.root / "xet")
        for name in ("models", "datasets", "lfs", "parts"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def find(self, kind: str, id: str) -> Repository | None:
        """A repository, or nothing."""
        folder = self._folder(kind, id)
        return Repository(folder) if (folder / "repo.json").is_file() else None

    def create(self, kind: str, id: str, owner: str, private: bool) -> Repository:
        """A new repository; the name must be free."""
        with self.lock:
            return Repository.create(self._folder(kind, id), kind=kind, id=id, owner=owner, private=private)

    def delete(self, repository: Repository) -> None:
        """Remove a repository; LFS objects stay, since others may share them."""
        with self.lock:
            shutil.rmtree(repository.folder)

    def all(self) -> list[Repository]:
        """Every repository."""
        return [Repository(path.parent) for path in sorted(self.root.glob("*/*/repo.json"))]

    def lfs(self, sha256: str) -> Path:
        """Where an LFS object lies, or would lie."""
        if not _SHA256.match(sha256):
            raise Refusal(400, "an object is named by its SHA-256 in hexadecimal")
        return self.root / "lfs" / sha256

    def part(self, sha256: str, number: int) -> Path:
        """Where one part of an upload lies until all are there."""
        return self.root / "parts" / f"{self.lfs(sha256).name}.{number}"

    async def receive(self, stream: AsyncIterator[bytes], target: Path) -> str:
        """Write a body to a file, which appears whole or not at all; gives its SHA-256."""
        temporary = self.root / "parts" / f".{uuid4().hex}"
        digest = hashlib.sha256()
        with temporary.open("wb") as file:
            async for chunk in stream:
                digest.update(chunk)
                file.write(chunk)
        temporary.replace(target)
        return digest.hexdigest()

    def join(self, sha256: str, count: int) -> bool:
        """Make an object of its parts; false when they are not what was announced."""
        parts = [self.part(sha256, number) for number in range(1, count + 1)]
        if not all(part.is_file() for part in parts):
            return False
        temporary = self.root / "parts" / f".{uuid4().hex}"
        with temporary.open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
                part.unlink()
        return self.adopt(temporary, sha256)

    def adopt(self, file: Path, sha256: str) -> bool:
        """Move a file among the objects if its content is what its name says."""
        with file.open("rb") as content:
            right = hashlib.file_digest(content, "sha256").hexdigest() == sha256
        if right:
            file.replace(self.lfs(sha256))
        else:
            file.unlink()
        return right

    def ensure(self, sha256: str, size: int) -> bool:
        """Whether an object is here, after looking among what came over xet."""
        if not self.lfs(sha256).is_file():
            temporary = self.root / "parts" / f".{uuid4().hex}"
            return self.xet.restore(sha256, size, temporary) and self.adopt(temporary, sha256)
        return self.lfs(sha256).stat().st_size == size

    def _folder(self, kind: str, id: str) -> Path:
        if kind not in ("models", "datasets") or not _NAME.match(id) or ".." in id or "--" in id:
            raise Refusal(400, f"not a repository name: {id!r}")
        return self.root / kind / id.replace("/", "--")
