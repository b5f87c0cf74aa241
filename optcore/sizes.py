"""What a checkpoint weighs, read from the headers of its safetensors files. No tensor is touched, no torch needed."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

from optcore import compact
from optcore.errors import BadCheckpoint
from optcore.report import Measurement

CONTAINERS = ("model.gguf", "model.onnx", "model.onnx.data")
"""Files of targets that hold weights in another way than safetensors."""
MAX_HEADER_bytes = 32 * 2**20
"""A third of safetensors' own limit: parsed JSON takes up to forty times its size in memory."""
MOST_tensors = 300_000
"""Of a model: six times those of the largest published ones. What is reckoned of a stranger's walks over them."""


def size_measurements(source: Path, result: Path, dense: Path | None = None) -> tuple[Measurement, ...]:
    """Rows for bytes of weights and bits per weight, and for parameters where the chain changed their number.

    `dense` has the result's weights before they were packed; without it the result has as many as the source.
    """
    before, after = parameters(source), parameters(dense or source)
    source_bytes, result_bytes = weight_bytes(source), weight_bytes(result)
    counts = Measurement(name="parameters", title="Parameters", source=before, result=after, better="lower")
    return (
        Measurement(
            name="weight_bytes",
            title="Weights on disk",
            unit="bytes",
            source=source_bytes,
            result=result_bytes,
            better="lower",
        ),
        Measurement(
            name="bits_per_weight",
            title="Bits per weight",
            source=8 * source_bytes / before,
            result=8 * result_bytes / after,
            better="lower",
            note=f"{after} parameters; embeddings, norms and scales counted in",
        ),
        *((counts,) if before != after else ()),
    )


def weight_bytes(folder: Path) -> int:
    """Size of the files that hold a folder's weights, an engine's own container where there are no safetensors."""
    return sum(path.stat().st_size for path in container_files(folder) or weight_files(folder))


def container_files(folder: Path) -> list[Path]:
    """The files of an engine's own container, of a folder that has its weights in nothing else."""
    if weight_files(folder)[0].exists():
        return []
    return [folder / name for name in CONTAINERS if (folder / name).exists()]


def weight_files(folder: Path) -> list[Path]:
    """The files that the index names, or the single one, or that of a compact checkpoint; a folder may hold copies of
    the weights in other forms."""
    if (folder / compact.DESCRIPTION).exists():
        return [folder / compact.WEIGHTS]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def tensor_sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Elements and bytes of each tensor of a safetensors file."""
    sizes = {}
    for name, facts in read_header(path).items():
        shape, offsets = facts["shape"], facts["data_offsets"]
        assert isinstance(shape, list)
        assert isinstance(offsets, list)
        sizes[name] = (math.prod(shape), int(offsets[1]) - int(offsets[0]))
    return sizes


def shapes(folder: Path) -> Iterator[tuple[int, ...]]:
    """Shapes of all tensors of a folder."""
    for path in weight_files(folder):
        for facts in read_header(path).values():
            shape = facts["shape"]
            assert isinstance(shape, list)
            yield tuple(shape)


def read_header(path: Path) -> dict[str, dict[str, object]]:
    """Names, types and shapes of a safetensors file's tensors. Raises `BadCheckpoint` for anything else."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= MAX_HEADER_bytes:
            raise BadCheckpoint(f"{path.name} is not a safetensors file", field="/model")
        try:
            header: dict[str, dict[str, object]] = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise BadCheckpoint(f"{path.name} has a damaged header", field="/model") from error
    if not isinstance(header, dict):
        raise BadCheckpoint(f"{path.name} has a damaged header", field="/model")
    header.pop("__metadata__", None)
    return header


def parameters(folder: Path) -> int:
    """Elements of all tensors in the safetensors files of a folder."""
    return sum(elements for path in weight_files(folder) for elements, _ in tensor_sizes(path).values())
