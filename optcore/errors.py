"""Everything that can go wrong in the engine, as one tree.

    OptError
    ├── RecipeError             a recipe that says something impossible
    ├── SourceError             the model or its data cannot be used
    │   ├── SourceNotFound      no such repository, revision, folder or file
    │   ├── SourceGated         it exists, and we may not read it
    │   ├── UnsafeCheckpoint    pickled weights, or a path that leaves its folder
    │   ├── BadCheckpoint       files missing, truncated or contradicting each other; NaN weights
    │   ├── UnknownArchitecture no known model class for its config
    │   └── VocabularyMismatch  two models that number tokens differently
    ├── DataError               calibration or evaluation text that cannot be used
    ├── GateFailed              a stage missed its measured bound
    ├── TrainingDiverged        the loss stopped being a number before anything was gained
    ├── FormLost                weights we wrote are not of the form that an earlier stage gave them
    ├── ExportMismatch          the bytes we wrote do not decode to what we simulated
    ├── OutOfMemory             the machine is too small for the largest layer
    ├── OutOfDisk               the work folder is too small
    ├── FileTooLarge            a file is beyond the limit that our process was given
    ├── GpuFailed               the GPU or its driver failed
    ├── FolderUnusable          the work or output folder cannot be written
    ├── HubUnavailable          the Hub did not answer; trying again may help
    └── StageCrashed            the stage process died without saying why

A message says what, what was found instead and, in `remedy`, what to do. A worker looks at `retryable` alone.
"""

import errno
import re
from typing import Literal

from optcore.frozen import Frozen
from optcore.out_of_memory import is_out_of_memory

Kind = Literal["user_error", "out_of_memory", "quality_gate", "timeout", "infrastructure", "upstream_hub", "internal"]


class Failure(Frozen):
    """An error as data: what the engine prints, the database stores and the API answers."""

    kind: Kind
    """Who has to act: the user, the operator, the Hub or us."""
    code: str
    """A stable name for programs, such as `source_not_found`."""
    message: str
    """What went wrong, for people."""
    remedy: str = ""
    """What to do about it."""
    field: str = ""
    """The place in the recipe that it is about, as a JSON Pointer such as `/model/path`."""
    stage: str = ""
    """The stage that failed, empty before the first."""
    retryable: bool = False
    """Whether the same job may succeed when it is run again unchanged."""


class OptError(Exception):
    """Base of the tree. Subclasses fix `code`, `kind` and `retryable`; an instance adds the message."""

    code = "internal"
    kind: Kind = "internal"
    retryable = False

    def __init__(self, message: str, *, remedy: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field

    def failure(self, stage: str = "") -> Failure:
        """This error as data."""
        return Failure(
            kind=self.kind,
            code=self.code,
            message=self.message,
            remedy=self.remedy,
            field=self.field,
            stage=stage,
            retryable=self.retryable,
        )


class RecipeError(OptError):
    """A recipe that cannot be read, or that says something impossible."""

    code = "recipe_invalid"
    kind: Kind = "user_error"


class SourceError(OptError):
    """The model or its data cannot be used."""

    code = "source_unusable"
    kind: Kind = "user_error"


class SourceNotFound(SourceError):
    """No such repository, revision, folder or file."""

    code = "source_not_found"


class SourceGated(SourceError):
    """It exists, and we may not read it."""

    code = "source_gated"


class UnsafeCheckpoint(SourceError):
    """Pickled weights (they can run code when read), or a path that leaves its folder."""

    code = "checkpoint_unsafe"


class BadCheckpoint(SourceError):
    """Files missing, truncated or contradicting each other; weights that are not finite."""

    code = "checkpoint_bad"


class UnknownArchitecture(SourceError):
    """No known model class for the checkpoint's config."""

    code = "architecture_unknown"


class VocabularyMismatch(SourceError):
    """Two models that number tokens differently."""

    code = "vocabulary_mismatch"


class DataError(OptError):
    """Calibration or evaluation text that cannot be used."""

    code = "data_unusable"
    kind: Kind = "user_error"


class GateFailed(OptError):
    """A stage missed its measured bound."""

    code = "gate_failed"
    kind: Kind = "quality_gate"


class TrainingDiverged(OptError):
    """The loss stopped being a number before anything was gained."""

    code = "training_diverged"
    kind: Kind = "user_error"


class FormLost(OptError):
    """Weights that we wrote are not of the form that an earlier stage gave them, such as sparse: our fault."""

    code = "form_lost"


class ExportMismatch(OptError):
    """The bytes we wrote do not decode to what we simulated: our fault, and nothing is published."""

    code = "export_mismatch"


class OutOfMemory(OptError):
    """The machine is too small for the largest layer."""

    code = "out_of_memory"
    kind: Kind = "out_of_memory"


_ASKED = re.compile(r"tried to allocate .{1,120}? (is free|bytes)", re.IGNORECASE | re.DOTALL)
"""How much torch wanted, and of a GPU how much it has and how much of that was free."""
NO_ROOM = re.compile(r"No space left on device|Disk quota exceeded")
"""What the system says of a full disk, which is all that libraries that are no Python pass on."""
_TOO_LARGE = re.compile(r"File too large")
GPU_FAILED = re.compile(
    r"(CUDA|NCCL|cuda\w*) error.*(ECC|hardware|illegal memory access|launch failure|launch timed out|unavailable"
    r"|no CUDA-capable device|initialization error|not permitted|system|unknown error)|GPU is lost|fallen off the bus",
    re.IGNORECASE,
)
"""Faults of a card or its driver, which another one may not have; a failed assertion in a kernel is none."""


class OutOfDisk(OptError):
    """The work folder is too small."""

    code = "out_of_disk"
    kind: Kind = "infrastructure"
    retryable = True  # on a worker with more room; finished stages are kept


class FileTooLarge(OptError):
    """A file is beyond the limit that our process was given."""

    code = "file_too_large"
    kind: Kind = "infrastructure"


class GpuFailed(OptError):
    """The GPU or its driver failed; another one may do."""

    code = "gpu_failed"
    kind: Kind = "infrastructure"
    retryable = True


class FolderUnusable(OptError):
    """The work or output folder cannot be written."""

    code = "folder_unusable"
    kind: Kind = "infrastructure"


def folder_error(error: OSError) -> OptError:
    """The typed error for what the operating system said of our folders."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfDisk(f"no room left: {error}", remedy="free space, or name another folder with --work and --out")
    if error.errno == errno.EFBIG:
        return FileTooLarge(str(error), remedy="raise the limit for files of the process (`ulimit -f`)")
    return FolderUnusable(str(error), remedy="check the path and its permissions, or name another folder")


def typed_error(error: Exception, stage: str) -> OptError:
    """Whatever ended a stage, as an error of the tree: ours as it is, memory, our folders, or a fault of ours."""
    if isinstance(error, OptError):
        return error
    if is_out_of_memory(error):
        asked = _ASKED.search(str(error))
        said = f"stage {stage} ran out of memory" + (f": {asked[0]}" if asked else "")
        return OutOfMemory(said, remedy="use a larger machine, or fewer or shorter calibration samples")
    if isinstance(error, OSError):
        return folder_error(error)
    for said_so, number in ((NO_ROOM, errno.ENOSPC), (_TOO_LARGE, errno.EFBIG)):
        if said_so.search(str(error)):  # the writer of safetensors has an error of its own
            return folder_error(OSError(number, str(error)))
    if GPU_FAILED.search(str(error)):
        return GpuFailed(f"stage {stage}: {error}", remedy="look for the GPU in the kernel's log; try another one")
    said = f"stage {stage} failed: {type(error).__name__}: {error}"
    return OptError(said, remedy="this is a fault of ours; please report it with the engine's log")


class HubUnavailable(OptError):
    """The Hub did not answer, or asked us to come back later."""

    code = "hub_unavailable"
    kind: Kind = "upstream_hub"
    retryable = True


class StageCrashed(OptError):
    """The stage process died without saying why."""

    code = "stage_crashed"
    kind: Kind = "infrastructure"
    retryable = True
