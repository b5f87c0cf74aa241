"""Which GPUs this process may use, without a library that would take hold of them."""

import os
import re
from pathlib import Path


def visible_gpus(devices: Path = Path("/dev")) -> int:
    """Those of CUDA_VISIBLE_DEVICES, or all that the driver shows; 0 where there is no driver."""
    present = sum(1 for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    chosen = _chosen()
    return present if chosen is None or not present else len(chosen)


def gpu_names(cards: Path = Path("/proc/driver/nvidia/gpus"), devices: Path = Path("/dev")) -> tuple[str, ...]:
    """The models of those GPUs, in the order of the bus, by the `information` that NVIDIA's driver keeps of each.

    `GPU` stands for one of which this does not tell the model: a part of a card, or any where the driver's files are
    hidden. A number means a place on the bus, so of unlike cards it may name another than CUDA, which sorts them by
    speed unless `CUDA_DEVICE_ORDER` says otherwise.
    """
    present = [_information(path) for path in sorted(cards.glob("*/information"))]
    chosen, models = _chosen(), {card.get("Model", "GPU") for card in present}
    if len(models) < 2:
        return visible_gpus(devices) * (*models, "GPU")[:1]
    if chosen is None:
        return tuple(card.get("Model", "GPU") for card in present)
    return tuple(_named(name, present) for name in chosen)


def _chosen() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES names; None where it is not set."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None:
        return None
    names = [name.strip() for name in said.split(",")]
    valid = names.index("-1") if "-1" in names else len(names)  # CUDA reads up to the first that it does not know
    return [name for name in names[:valid] if name]


def _named(name: str, present: list[dict[str, str]]) -> str:
    if name.isdecimal():
        found = present[int(name) : int(name) + 1]
    else:
        found = [card for card in present if card.get("GPU UUID", "").startswith(name)]
    return found[0].get("Model", "GPU") if len(found) == 1 else "GPU"


def _information(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:  # a card that fell off its bus
        return {}
    rows = (line.partition(":") for line in lines)
    return {key.strip(): " ".join(value.split()) for key, _, value in rows}
