"""A draft vocabulary as a folder has it: `d2t` and `t2d`, in the words of EAGLE, which most layouts took over.

Shapes: V tokens of the target, D of the draft.
"""

import torch

from optcore.drafts.checks import described, refused
from optcore.drafts.vocabulary import DraftVocabulary


def vocabulary_tensors(vocabulary: DraftVocabulary) -> dict[str, torch.Tensor]:
    """`d2t` int64 [D] is added to a draft's id to get the target's; `t2d` bool [V] says which tokens it knows."""
    return {"d2t": vocabulary.d2t_D.contiguous(), "t2d": vocabulary.t2d_V}


def taken_vocabulary(tensors: dict[str, torch.Tensor], known: int, size: int) -> DraftVocabulary:
    """Take `d2t` and `t2d` out of a folder's tensors. Raises `BadCheckpoint` where they contradict each other."""
    d2t_D, t2d_V = tensors.pop("d2t", None), tensors.pop("t2d", None)
    if d2t_D is None:
        if known != size:
            raise refused(f"has {known} of {size} tokens and no d2t that says which")
        return DraftVocabulary.whole(size)
    if d2t_D.dtype != torch.int64 or d2t_D.shape != (known,):
        raise refused(f"has d2t as {described(d2t_D)}, and int64 [{known}] is needed")
    ids_D = torch.arange(known) + d2t_D
    if not ((ids_D >= 0) & (ids_D < size)).all():
        raise refused(f"has d2t that leads out of the target's {size} tokens")
    if (ids_D.diff() <= 0).any():
        raise refused("has d2t that names tokens twice or out of order")
    vocabulary = DraftVocabulary(ids_D, size)
    if t2d_V is not None and not (t2d_V.dtype == torch.bool and torch.equal(t2d_V, vocabulary.t2d_V)):
        raise refused("has t2d that disagrees with d2t")
    return vocabulary
