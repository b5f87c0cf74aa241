"""What clients upload over xet: they write it themselves into a folder that the peer names (`casUrl: local://...`).

A commit names a file by its SHA-256, xet by the hash of its chunks. The map between them is in the shards that the
client leaves beside the data: a header, then one section a file (its hash, a count and flags), each an array of
48-byte records in which the optional last one starts with the SHA-256.
"""

import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

RECORD_bytes = 48
HEADER_bytes = 48
_HAS_VERIFICATION = 1 << 31
_HAS_METADATA = 1 << 30
_END = b"\xff" * 32


class XetStore:
    """One folder an upload, since a client locks its own. Emptied on start: commits have moved what matters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def connection(self) -> dict[str, str | int]:
        """What a client needs to write here."""
        upload = self.folder / uuid4().hex
        upload.mkdir()
        return _connection(upload)

    def restore(self, sha256: str, size: int, target: Path) -> bool:
        """Put a file together again from its chunks; false when no shard knows it."""
        for upload in self.folder.iterdir():
            hashes = _hashes(upload)
            if sha256 in hashes:
                _rebuild(upload, hashes[sha256], size, target)
                return True
        return False


def _rebuild(upload: Path, xet_hash: str, size: int, target: Path) -> None:
    from hf_xet import XetFileInfo, XetSession  # type: ignore[import-untyped]

    with TemporaryDirectory(dir=upload.parent.parent) as snapshot:
        # The client still has its database locked; what it wrote is complete, and can be copied.
        copy = Path(snapshot) / upload.name
        shutil.copytree(upload, copy, copy_function=_link_or_copy)
        place = _connection(copy)
        with XetSession().new_file_download_group(
            endpoint=place["casUrl"], token=place["accessToken"], token_expiry_unix_secs=place["exp"]
        ) as group:
            group.start_download_file(XetFileInfo(xet_hash, size), str(target))


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(".redb"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def _connection(folder: Path) -> dict[str, str | int]:
    return {"casUrl": f"local://{folder}", "exp": int(time.time()) + 3600, "accessToken": "local"}


def _hashes(upload: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for shard in upload.rglob("*.mdb"):
        found |= read_shard(shard.read_bytes())
    return found


def read_shard(shard: bytes) -> dict[str, str]:
    """Xet hash by SHA-256, of the files in a shard."""
    found: dict[str, str] = {}
    position = HEADER_bytes
    while position + RECORD_bytes <= len(shard):
        head = shard[position : position + RECORD_bytes]
        if head[:32] == _END:
            break
        flags, count = int.from_bytes(head[32:36], "little"), int.from_bytes(head[36:40], "little")
        position += RECORD_bytes * (1 + count * (2 if flags & _HAS_VERIFICATION else 1))
        if flags & _HAS_METADATA:
            found[_hex(shard[position : position + 32])] = _hex(head[:32])
            position += RECORD_bytes
    return found


def _hex(hash_: bytes) -> str:
    """Xet writes a hash as four little-endian 64-bit numbers."""
    return "".join(f"{int.from_bytes(hash_[at : at + 8], 'little'):016x}" for at in range(0, 32, 8))
