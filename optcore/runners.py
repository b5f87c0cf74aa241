"""Which engines run on a worker's own processor, and what they need there to read a target."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

from optcore.engines import ENGINES, Family, obstacles
from optcore.export.base import EngineName
from optcore.report import Task
from optcore.version import installed

_TRANSFORMERS: frozenset[Task] = frozenset({"text-generation", "fill-mask", "text-classification"})


class Runner(NamedTuple):
    """An engine with a room of its own in `optcore.serving`."""

    engine: EngineName
    package: str
    """What is installed for it."""
    tasks: frozenset[Task]
    """What a model must be for, so that it runs it."""
    reads: Mapping[str, tuple[str, ...]]
    """Targets, with the modules that reading one needs."""

    @property
    def version(self) -> str:
        """The installed one."""
        return installed(self.package)


TRANSFORMERS = Runner(
    "transformers",
    "transformers",
    _TRANSFORMERS,
    {
        "dense": ("transformers",),
        "compressed-tensors": ("transformers", "compressed_tensors"),
        "fp8": ("transformers",),
        "awq": ("transformers", "gptqmodel"),
        "gptq": ("transformers", "gptqmodel", "optimum"),
    },
)
"""What the source is measured in."""
RUNNERS = (
    TRANSFORMERS,
    Runner("llama.cpp", "llama-cpp-python", frozenset({"text-generation"}), {"gguf": ("llama_cpp",)}),
    Runner("onnxruntime-genai", "onnxruntime-genai", frozenset({"text-generation"}), {"onnx": ("onnxruntime_genai",)}),
    Runner("onnxruntime", "onnxruntime", _TRANSFORMERS - {"text-generation"}, {"onnx": ("onnxruntime",)}),
)
"""vLLM, SGLang and TensorRT-LLM are not here: they serve on a GPU, with a server of their own."""
CPU_TARGETS = frozenset({"gguf", "onnx"})
"""Targets that are written for engines on a CPU."""


def find_runner(target: str, formats: tuple[str, ...], family: Family, task: Task) -> tuple[Runner | None, str]:
    """The engine that runs such a result here; else None, and why there is none."""
    found = next((runner for runner in RUNNERS if target in runner.reads and task in runner.tasks), None)
    if found is None:
        return None, f"no engine that runs on a CPU reads {target}"
    if refused := obstacles(target, found.engine, formats, family):
        return None, f"{ENGINES[found.engine]} does not load {' and '.join(refused)} from {target}"
    if missing := [module for module in found.reads[target] if not find_spec(module)]:
        return None, f"reading it needs {' and '.join(missing)}, which this machine lacks"
    return found, ""
