"""How many GPUs this process may use, without a library that would take hold of them."""

import os
import re
from pathlib import Path


def visible_gpus(devices: Path = Path("/dev")) -> int:
    """Those of CUDA_VISIBLE_DEVICES, or all that the driver shows; 0 where there is no driver."""
    present = sum(1 for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not present:
        return present
    names = [name.strip() for name in chosen.split(",")]
    valid = names.index("-1") if "-1" in names else len(names)  # CUDA reads up to the first that it does not know
    return sum(1 for name in names[:valid] if name)
