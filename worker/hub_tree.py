"""What the Hub has beside what it should have: the changes that turn the one into the other, and the proof after."""

from collections.abc import Iterable

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from optcore.draft_document import DESCRIPTION, DRAFT
from optcore.manifest import MANIFEST, SIGNATURE
from worker.hub_errors import PublishMismatch
from worker.hub_files import ALSO, Files, result_of

_PATHS_A_CALL = 500
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_OURS = ("model.gguf", "imatrix.gguf", "model.onnx", "model.onnx.data", SIGNATURE)
"""By name alone: others may keep further files of these kinds beside ours. An old signature would hold for nothing."""

Operations = list[CommitOperationAdd | CommitOperationDelete]
Tree = dict[str, str]
"""What names each file's content: SHA-256 of a large one, git's SHA-1 of a small one."""


def head_of(api: HfApi, repo_id: str, branch: str) -> str | None:
    """The commit of a branch, if there is such a branch."""
    branches = api.list_repo_refs(repo_id).branches
    return next((ref.target_commit for ref in branches if ref.name == branch), None)


def changes(api: HfApi, repo_id: str, revision: str, files: Files) -> Operations:
    """What turns the tree of a revision into ours; nothing where it is so already."""
    there = _named(api.list_repo_tree(repo_id, recursive=True, revision=revision))
    added = [
        CommitOperationAdd(path, file.content) for path, file in files.items() if there.get(path) not in file.hashes
    ]
    return [*added, *(CommitOperationDelete(path, is_folder=False) for path in _stale(files, there))]


def verify(api: HfApi, repo_id: str, revision: str, files: Files) -> None:
    """Compare what the Hub says that it has with what we have. Raises `PublishMismatch`."""
    paths = list(files)
    there: Tree = {}
    for start in range(0, len(paths), _PATHS_A_CALL):
        there |= _named(api.get_paths_info(repo_id, paths[start : start + _PATHS_A_CALL], revision=revision))
    for path, file in files.items():
        if there.get(path) not in file.hashes:
            raise PublishMismatch(f"{path} on the Hub is not the file that was sent", remedy="publish again")


def _stale(files: Files, there: Tree) -> list[str]:
    """Weights of an earlier model would be half of a wrong one, and so would a result or a draft that it had beside."""
    ours = {result_of(path) for path in (*there, *files) if path == f"{ALSO}{result_of(path)}/{MANIFEST}"}
    left = [path for path in there if path not in files]
    had_draft = f"{DRAFT}/{DESCRIPTION}" in there
    return [
        path
        for path in left
        if result_of(path) in ours
        or ("/" not in path and (path.endswith(_WEIGHTS) or path in _OURS))
        or (had_draft and path.startswith(f"{DRAFT}/"))
    ]


def _named(entries: Iterable[object]) -> Tree:
    return {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries if isinstance(entry, RepoFile)
    }
