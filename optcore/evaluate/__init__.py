"""The registry of evaluators: a closed union. One more is one file here and one `| Name` below.

Sizes (bytes, bits per weight, parameters) are always in the report and need no entry.
"""

from typing import Annotated

from pydantic import Field

from optcore.evaluate.acceptance import Acceptance
from optcore.evaluate.base import Evaluator
from optcore.evaluate.classification import Classification
from optcore.evaluate.engines import Engines
from optcore.evaluate.fidelity import Fidelity
from optcore.evaluate.long_context import LongContext
from optcore.evaluate.throughput import Throughput

AnyEvaluator = Annotated[
    Fidelity | Throughput | Classification | LongContext | Acceptance | Engines, Field(discriminator="evaluator")
]

__all__ = [
    "Acceptance",
    "AnyEvaluator",
    "Classification",
    "Engines",
    "Evaluator",
    "Fidelity",
    "LongContext",
    "Throughput",
]
