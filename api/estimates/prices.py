"""What an hour of a machine costs, by the operator's settings."""

from collections.abc import Mapping

from optcore.estimate.document import Machine

HOUR_seconds = 3600


def price_of_an_hour(machine: Machine, prices: Mapping[str, float]) -> float | None:
    """Of all its GPUs, by the longest name that is part of theirs; of a machine without, by `cpu`. None: not known."""
    if machine.device == "cpu":
        return prices.get("cpu")
    kind = machine.gpu_kind.lower()
    fitting = [name for name in prices if name != "cpu" and name.lower() in kind]
    return prices[max(fitting, key=len)] * max(1, machine.gpus) if fitting else None


def cost(seconds: float, machine: Machine, prices: Mapping[str, float]) -> float | None:
    """Money for so long on a machine."""
    price = price_of_an_hour(machine, prices)
    return None if price is None else price * seconds / HOUR_seconds
