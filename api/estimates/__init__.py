"""What a job would take: the engine's formulas, what finished stages taught, the workers that are there, the prices."""

from api.estimates.estimator import Estimator, refusal

__all__ = ["Estimator", "refusal"]
