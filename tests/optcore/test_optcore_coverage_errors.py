"""What ends a stage becomes an error of the tree."""

import errno

import pytest
import torch

from optcore.errors import BadCheckpoint, FileTooLarge, GpuFailed, OptError, OutOfDisk, OutOfMemory, typed_error


def _allocate_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def test_torchs_refusal_to_allocate_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as raised:
        _allocate_too_much()
    error = typed_error(raised.value, "ptq")
    assert isinstance(error, OutOfMemory)
    assert error.failure("ptq").kind == "out_of_memory"


def test_what_torch_asked_of_a_gpu_is_said() -> None:
    asked = "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.25 GiB is free"
    error = typed_error(torch.OutOfMemoryError(f"CUDA out of memory. {asked}. Process 7 has 3 GiB in use."), "ptq")
    assert error.message == f"stage ptq ran out of memory: {asked}"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), OutOfMemory),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemory),
        (OSError(errno.ENOSPC, "No space left on device"), OutOfDisk),
        (OSError(errno.EFBIG, "File too large"), FileTooLarge),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), OutOfDisk),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), GpuFailed),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), GpuFailed),
        (RuntimeError("CUDA error: device-side assert triggered"), OptError),
        (BadCheckpoint("cut"), BadCheckpoint),
        (RuntimeError("shapes do not match"), OptError),
    ],
)
def test_every_error_has_its_place(error: Exception, kind: type[OptError]) -> None:
    assert type(typed_error(error, "ptq")) is kind
