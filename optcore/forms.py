"""Files beside a checkpoint's weights that say of which form these are, and how the model is to be run."""

from optcore import factored, hashed, palettized, tied
from optcore.conditional import DESCRIPTION as CONDITIONAL
from optcore.puzzle import DESCRIPTION as PUZZLE
from optcore.sparsity import DESCRIPTION as SPARSITY

FORMS = (
    SPARSITY,
    PUZZLE,
    *factored.SIDE_FILES,
    *palettized.SIDE_FILES,
    *hashed.SIDE_FILES,
    *tied.SIDE_FILES,
    CONDITIONAL,
)

__all__ = ["CONDITIONAL", "FORMS", "PUZZLE", "SPARSITY"]
