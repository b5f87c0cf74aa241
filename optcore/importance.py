"""How much each input channel of a quantized linear layer matters: what was measured on text, kept beside the codes.

`importance.safetensors` holds `<module>.mean_square`, float32 [K], and `<module>.tokens`, int64 []. It is what
llama.cpp calls an importance matrix, and belongs to no model: no index names it, and no size counts it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from optcore.durable import settle

if TYPE_CHECKING:
    import torch

IMPORTANCE = "importance.safetensors"


class Importance(NamedTuple):
    """Of the input of one linear layer with K channels."""

    mean_square_K: "torch.Tensor"
    """Mean of x^2 over the tokens, float32, of the input as the stored weight sees it: smoothed where it is."""
    tokens: int


def load_importance(folder: Path) -> dict[str, Importance] | None:
    """By module name in the checkpoint; None where no text was measured."""
    return read_importance(folder / IMPORTANCE) if (folder / IMPORTANCE).is_file() else None


def read_importance(path: Path) -> dict[str, Importance]:
    """What `write_importance` wrote."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    modules = (name.removesuffix(".tokens") for name in tensors if name.endswith(".tokens"))
    return {name: Importance(tensors[f"{name}.mean_square"], int(tensors[f"{name}.tokens"])) for name in modules}


def write_importance(path: Path, found: Mapping[str, Importance]) -> None:
    """Write it durably: the file is there as a whole, or not at all."""
    import torch
    from safetensors.torch import save_file

    from optcore.streaming.staging import on_cpu

    tensors: dict[str, torch.Tensor] = {}
    for name, one in found.items():
        tensors[f"{name}.mean_square"] = one.mean_square_K.float()
        tensors[f"{name}.tokens"] = torch.tensor(one.tokens)
    part = path.with_name(f"{path.name}.part")
    save_file(on_cpu(tensors), part, metadata={"format": "pt"})
    part.chmod(0o644)
    settle(part, path)


def join_importance(paths: Iterable[Path], out: Path) -> None:
    """One file of the parts that there are; none where there is no part."""
    found = {name: one for path in paths if path.exists() for name, one in read_importance(path).items()}
    if found:
        write_importance(out, found)
