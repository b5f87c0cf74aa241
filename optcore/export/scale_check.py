"""Whether stored scales are numbers that a kernel can multiply and divide by."""

from collections.abc import Iterator
from math import inf

from optcore.export.raw_reader import RawFiles


def scale_faults(files: RawFiles, name: str, signed: bool = False) -> Iterator[str]:
    """A sentence when a scale is zero, infinite, NaN or, unless `signed`, negative."""
    values = files.floats(name)
    is_good = (abs(values) < inf) & ((values != 0) if signed else (values > 0))  # NaN is below nothing
    if not is_good.all():
        worst = values[~is_good].flat[0]
        yield f"{name} holds {worst:g}, and a scale is finite and {'not zero' if signed else 'above zero'}"
