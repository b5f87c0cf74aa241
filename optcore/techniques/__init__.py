"""The registry of techniques: a closed union. One more is one file here and one `| Name` below."""

from typing import Annotated

from pydantic import Field

from optcore.techniques.auto_quantize import AutoQuantize
from optcore.techniques.base import Gate, Technique
from optcore.techniques.distill import Distill
from optcore.techniques.finetune import Finetune
from optcore.techniques.heal import Heal
from optcore.techniques.low_rank import LowRank
from optcore.techniques.merge import Merge
from optcore.techniques.prune import Prune
from optcore.techniques.ptq import Ptq
from optcore.techniques.puzzle import Puzzle
from optcore.techniques.qad import Qad
from optcore.techniques.qat import Qat
from optcore.techniques.rotate import Rotate
from optcore.techniques.sparsify import Sparsify

AnyTechnique = Annotated[
    Ptq | AutoQuantize | Rotate | Qad | Qat | Finetune | Distill | Heal | Prune | Sparsify | LowRank | Merge | Puzzle,
    Field(discriminator="technique"),
]

__all__ = [
    "AnyTechnique",
    "AutoQuantize",
    "Distill",
    "Finetune",
    "Gate",
    "Heal",
    "LowRank",
    "Merge",
    "Prune",
    "Ptq",
    "Puzzle",
    "Qad",
    "Qat",
    "Rotate",
    "Sparsify",
    "Technique",
]
