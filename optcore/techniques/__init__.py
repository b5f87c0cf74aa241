"""The registry of techniques: a closed union. One more is one file here and one `| Name` below."""

from typing import Annotated

from pydantic import Field

from optcore.techniques.activation_sparsity import ActivationSparsity
from optcore.techniques.attention_window import AttentionWindow
from optcore.techniques.auto_quantize import AutoQuantize
from optcore.techniques.base import Gate, Technique
from optcore.techniques.distill import Distill
from optcore.techniques.draft import Draft
from optcore.techniques.early_exit import EarlyExit
from optcore.techniques.finetune import Finetune
from optcore.techniques.hash_share import HashShare
from optcore.techniques.heal import Heal
from optcore.techniques.low_rank import LowRank
from optcore.techniques.merge import Merge
from optcore.techniques.palettize import Palettize
from optcore.techniques.prune import Prune
from optcore.techniques.ptq import Ptq
from optcore.techniques.puzzle import Puzzle
from optcore.techniques.qad import Qad
from optcore.techniques.qat import Qat
from optcore.techniques.rotate import Rotate
from optcore.techniques.sparsify import Sparsify
from optcore.techniques.tie_layers import TieLayers
from optcore.techniques.upcycle import Upcycle

AnyTechnique = Annotated[
    Ptq
    | AutoQuantize
    | Rotate
    | Qad
    | Qat
    | Finetune
    | Distill
    | Heal
    | EarlyExit
    | Prune
    | Puzzle
    | Sparsify
    | LowRank
    | Palettize
    | HashShare
    | TieLayers
    | Merge
    | Upcycle
    | ActivationSparsity
    | AttentionWindow
    | Draft,
    Field(discriminator="technique"),
]

__all__ = [
    "ActivationSparsity",
    "AnyTechnique",
    "AttentionWindow",
    "AutoQuantize",
    "Distill",
    "Draft",
    "EarlyExit",
    "Finetune",
    "Gate",
    "HashShare",
    "Heal",
    "LowRank",
    "Merge",
    "Palettize",
    "Prune",
    "Ptq",
    "Puzzle",
    "Qad",
    "Qat",
    "Rotate",
    "Sparsify",
    "Technique",
    "TieLayers",
    "Upcycle",
]
