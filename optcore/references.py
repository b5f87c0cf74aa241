"""What a recipe refers to outside of it: a model, a data set, a place to publish."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, model_validator

from optcore.frozen import Frozen

BUILT_IN = "python-stdlib"
"""The data set that every machine has."""

REPO_ID_LIMIT = 96
"""Characters in the name of a repository, the owner included."""
RepoId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=REPO_ID_LIMIT)
]
Revision = Annotated[str, StringConstraints(pattern=r"^[\w][\w./-]*$", max_length=200)]
LocalPath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ModelRef(Frozen):
    """The model to start from: a Hub repository, or a folder on the worker."""

    id: RepoId | None = None
    """Hub repository, such as `Qwen/Qwen3-8B`."""
    revision: Revision = "main"
    """Branch, tag or commit; pinned to the commit when the job starts."""
    path: LocalPath | None = None
    """Folder on the machine that runs the engine, instead of `id`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.id is None) == (self.path is None):
            raise ValueError("give exactly one of `id` (a Hub repository) and `path` (a folder)")
        return self

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.id else str(self.path)


class TextSource(Frozen):
    """Text: a Hub data set, a file on the worker, or what every machine has."""

    dataset: Annotated[str, StringConstraints(max_length=96)] | None = None
    """Hub data set, or `python-stdlib`: the Python standard library's sources, which need no network."""
    revision: Revision = "main"
    """Branch, tag or commit of a Hub data set; pinned to the commit when the job starts."""
    subset: Annotated[str, StringConstraints(max_length=200)] | None = None
    """Configuration of a Hub data set; the first one that has files when absent."""
    column: Annotated[str, StringConstraints(max_length=200)] | None = None
    """Text column of a JSON lines, CSV or Parquet file; when absent `text`, `article`, `content` or the only one."""
    path: LocalPath | None = None
    """File (`.txt`, `.jsonl`, `.csv`, `.parquet`) on the machine that runs the engine, instead of `dataset`."""

    @property
    def is_built_in(self) -> bool:
        """Whether it is the standard library's sources."""
        return self.dataset == BUILT_IN and self.path is None


class NeededText(Frozen):
    """Text, and how much of it."""

    text: TextSource
    tokens: int
    """Of a Hub data set as many files are downloaded as these can need."""


class Calibration(TextSource):
    """Text that activation statistics are measured on, and that evaluation text is held out from."""

    dataset: Annotated[str, StringConstraints(max_length=96)] = "cnn_dailymail"
    """Hub data set, or `python-stdlib`: the Python standard library's sources, which need no network."""
    samples: int = Field(default=512, ge=1, le=100_000)
    """Windows of text."""
    sequence_length: int = Field(default=2048, ge=2, le=131_072)
    """Tokens a window; cut to what the model can hold."""

    @property
    def needed(self) -> NeededText:
        """The text, and how much of it the windows take."""
        return NeededText(text=self, tokens=self.samples * self.sequence_length)


class Hardware(Frozen):
    """What a worker must have to run the job. The engine ignores it: the service chooses the worker."""

    device: Literal["any", "cuda", "cpu"] = "any"
    gpu_kind: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None
    """Part of the GPU's name, such as `H200`; case does not matter."""
    gpu_memory_gib: float | None = Field(default=None, gt=0, le=4096)
    """Memory that each GPU must have."""

    @model_validator(mode="after")
    def _a_gpu_is_no_cpu(self) -> Self:
        if self.device == "cpu" and (self.gpu_kind or self.gpu_memory_gib):
            raise ValueError("a job for `cpu` cannot ask for a GPU: leave out gpu_kind and gpu_memory_gib")
        return self


class Limits(Frozen):
    """How long a job may take. The engine ignores them: the service counts. Without them, nothing ends it."""

    max_run_seconds: int | None = Field(default=None, ge=1, le=10**8)
    """In workers' hands, over all attempts; waiting is not counted."""
    max_queue_seconds: int | None = Field(default=None, ge=1, le=10**8)
    """In the queue, each time that the job waits."""


class Place(NamedTuple):
    """Where one result lies on the Hub."""

    repo_id: str
    branch: str
    folder: str = ""
    """Below the repository's root; empty for the root itself."""


class Publish(Frozen):
    """Where the finished checkpoint goes on the Hub. The engine ignores it: the service publishes."""

    repo_id: RepoId
    private: bool = True
    credential: Label = "default"
    """Name of a stored Hub credential; never the token itself."""
    revision: Revision = "main"
    """Branch to publish to; made when absent."""
    via: Literal["pull_request", "branch"] = "pull_request"
    """A pull request that is filled, checked and merged; or, where the server has none, one commit on the branch."""
    merge: bool = True
    """`false` leaves the pull request open for a person."""
    layout: Literal["folder", "branch", "repo"] = "folder"
    """Where a further result (`also`) goes: to the folder `also/<name>/`, to a branch `<name>`, or to a repository
    `<repo_id>-<name>`."""

    @model_validator(mode="after")
    def _something_to_leave_open(self) -> Self:
        if self.via == "branch" and not self.merge:
            raise ValueError("without a pull request there is nothing to merge: leave out `merge`")
        return self

    def place(self, result: str) -> Place:
        """Where a result goes; the main one has no name."""
        if result and self.layout == "branch":
            return Place(self.repo_id, result)
        if result and self.layout == "repo":
            return Place(f"{self.repo_id}-{result}", self.revision)
        return Place(self.repo_id, self.revision, f"also/{result}" if result else "")
