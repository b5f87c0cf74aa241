"""The machines that a job could run on: those of the workers that are there, or the one that its recipe asks for."""

from api.store.models import Worker
from optcore.estimate.document import Machine
from optcore.references import Hardware

GIB = 1024**3


def machine_of(worker: Worker) -> Machine:
    """That of a worker which runs engines."""
    return Machine(
        device="cuda" if worker.device == "cuda" else "cpu",
        gpus=worker.gpus,
        gpu_kind=worker.gpu_kind or "",
        gpu_memory_bytes=worker.gpu_memory_bytes,
        host_memory_bytes=worker.host_memory_bytes,
        cores=worker.cores or 1,
        disk_free_bytes=worker.disk_free_bytes,
    )


def wished(hardware: Hardware) -> Machine:
    """The least that a recipe asks for, where nobody is there to have more."""
    has_gpu = hardware.device == "cuda" or hardware.gpu_kind is not None or hardware.gpu_memory_gib is not None
    memory = hardware.gpu_memory_gib and round(hardware.gpu_memory_gib * GIB)
    gpu = {"gpus": 1, "gpu_kind": hardware.gpu_kind or "", "gpu_memory_bytes": memory}
    return Machine(device="cuda", **gpu) if has_gpu else Machine()
