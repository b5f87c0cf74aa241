"""Runs ONNX Runtime GenAI's model builder, which knows the families' graphs, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optcore.errors import OutOfMemory, typed_error
from optcore.host_memory import machine_bytes
from optcore.sizes import weight_bytes

if TYPE_CHECKING:
    from optcore.run import Run

GRAPH = "model.onnx"
DATA = "model.onnx.data"
_ROOM = 2  # the builder holds the model, and copies what it puts together
_PROVIDER = {"fp32": "cpu", "fp16": "cuda"}  # for CPUs it writes attention in many small nodes where types are halves
_TAIL_lines = 8


def build_graph(run: "Run", checkpoint: Path, plain: Literal["fp32", "fp16"], *, packs: bool) -> Path:
    """The folder with the graph of a checkpoint, its data, `genai_config.json` and tokenizer; all floats are `plain`.

    `packs`: q, k and v of a layer are one matrix. Raises `OutOfMemory`, `OutOfDisk`, or `OptError` with what it said.
    """
    _check_memory(checkpoint)
    out = run.scratch / "graph"
    options = [f"fuse_qkv={str(packs).lower()}", "windowed_kv_cache=false", "hf_token=false"]
    command = [
        *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
        *("-i", str(checkpoint), "-o", str(out), "-c", str(run.scratch / "cache")),
        *("-p", plain, "-e", _PROVIDER[plain], "--extra_options", *options),
    ]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        said = "\n".join(done.stdout.strip().splitlines()[-_TAIL_lines:])
        raise typed_error(RuntimeError(f"the model builder ended with status {done.returncode}: {said}"), run.stage)
    return out


def _check_memory(checkpoint: Path) -> None:
    needed = weight_bytes(checkpoint) * _ROOM
    available = machine_bytes()
    if needed > available:
        raise OutOfMemory(
            f"the builder holds the whole model: {needed / 2**20:.0f} MiB may be needed, "
            f"{available / 2**20:.0f} MiB are free",
            remedy="use a larger machine, or choose a target that is written layer by layer, such as `gguf`",
            field="/target/format",
        )
