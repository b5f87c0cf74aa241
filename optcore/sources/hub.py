"""A Hub repository at one commit: what is in it, and bringing some of it here."""

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from optcore.errors import HubUnavailable, OutOfDisk
from optcore.events import Phase
from optcore.sources.client import HubRepo, hub_api, patiently

Report = Callable[[Phase, int, int], None]
"""Called with a phase (`downloading` or `hashing`), bytes done and bytes in all."""

PARALLEL = 4


class Remote(NamedTuple):
    """A file in a commit."""

    path: str
    size: int
    sha256: str | None
    """Known for large files."""


class Pinned(NamedTuple):
    """A repository at the commit that its branch or tag named when we asked."""

    commit: str
    files: dict[str, Remote]
    card: dict[str, Any]
    """The YAML head of its README."""


def pin(repo: HubRepo) -> Pinned:
    """Resolve a revision to its commit and list its files. Raises `SourceNotFound`, `SourceGated`, `HubUnavailable`."""
    api = hub_api()
    ask: Callable[..., Any] = api.model_info if repo.kind == "model" else api.dataset_info
    info = patiently(lambda: ask(repo.id, revision=repo.revision, files_metadata=True), repo)
    if not info.sha:
        raise HubUnavailable(f"the Hub did not say which commit {repo} is", remedy="check HF_ENDPOINT")
    files = [_remote(sibling) for sibling in info.siblings or []]
    card = info.card_data.to_dict() if info.card_data else {}
    return Pinned(info.sha, {file.path: file for file in files}, card)


def folder_of(repo: HubRepo, commit: str, cache: Path) -> Path:
    """Where the files of a commit lie below the cache."""
    return cache / f"{repo.kind}s" / repo.id.replace("/", "--") / commit


def download(repo: HubRepo, pinned: Pinned, paths: Iterable[str], cache: Path, report: Report) -> Path:
    """Bring files here, those that are not here yet; gives their folder. Safe to repeat and to run at once."""
    api, folder = hub_api(), folder_of(repo, pinned.commit, cache)
    wanted = [pinned.files[path] for path in paths]
    done, total = 0, sum(file.size for file in wanted)
    _check_room(repo, folder, wanted)
    report("downloading", done, total)

    def bring(file: Remote) -> int:
        options: dict[str, Any] = {"repo_type": repo.kind, "revision": pinned.commit, "local_dir": folder}
        patiently(lambda: api.hf_hub_download(repo.id, file.path, **options), repo)
        return file.size

    with ThreadPoolExecutor(PARALLEL) as pool:
        tasks = [pool.submit(bring, file) for file in wanted]
        try:
            for task in as_completed(tasks):
                done += task.result()
                report("downloading", done, total)
        finally:
            pool.shutdown(cancel_futures=True)
    return folder


def verify(folder: Path, pinned: Pinned, hashes: dict[str, str]) -> None:
    """Compare with the hashes that the Hub keeps. Raises `HubUnavailable` after removing what came damaged."""
    for path, sha256 in hashes.items():
        if pinned.files[path].sha256 not in (None, sha256):
            (folder / path).unlink()
            raise HubUnavailable(f"{path} came damaged from the Hub", remedy="run again: it is downloaded anew")


def _check_room(repo: HubRepo, folder: Path, wanted: Iterable[Remote]) -> None:
    """Raise `OutOfDisk` before hours of a download that cannot end."""
    missing = sum(file.size for file in wanted if not (folder / file.path).exists())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise OutOfDisk(
            f"{repo} has {missing / 2**30:.1f} GiB to download, and {free / 2**30:.1f} GiB are free",
            remedy="free space in the work folder, or choose a worker with a larger disk",
            field=repo.id_field,
        )


def _remote(sibling: Any) -> Remote:
    return Remote(sibling.rfilename, sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
