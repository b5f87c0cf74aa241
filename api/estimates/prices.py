"""What an hour of a machine costs, by the operator's settings."""

from collections.abc import Mapping, Sequence

from sqlalchemy.orm import Session

from api.settings import Settings
from api.store import attempts
from api.store.attempts import Spent
from lathe.models import Money
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


def cost_of_job(session: Session, job_id: str, settings: Settings) -> Money | None:
    """What a job costs so far, where that is known."""
    amount = cost_so_far(attempts.spent(session, job_id), settings.prices) if settings.prices else None
    return None if amount is None else Money(amount=amount, currency=settings.currency)


def cost_so_far(spent: Sequence[Spent], prices: Mapping[str, float]) -> float | None:
    """Money for what a job had of machines; None where some of it has no price, or it had nothing yet."""
    costs = [
        cost(each.seconds, Machine(device=each.device, gpus=each.gpus, gpu_kind=each.gpu_kind or ""), prices)
        if each.device in ("cuda", "cpu")
        else None
        for each in spent
    ]
    known = [each for each in costs if each is not None]
    return sum(known) if known and len(known) == len(costs) else None
