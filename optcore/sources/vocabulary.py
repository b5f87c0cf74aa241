"""Whether two models speak of the same tokens: without it none can learn from the other, or be merged with it."""

import json
from pathlib import Path

from optcore.errors import VocabularyMismatch


def check_same_vocabulary(model: Path, other: Path, field: str) -> None:
    """Raise `VocabularyMismatch` where token ids mean different text, or the heads have different sizes."""
    from transformers import AutoTokenizer

    own, theirs = (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab() for folder in (model, other)
    )
    if own != theirs:
        different = sum(theirs.get(token) != number for token, number in own.items())
        raise _mismatch(
            f"{different} of {len(own)} tokens have another number, or none, there ({len(theirs)} tokens)", field
        )
    sizes = [_vocabulary_size(folder) for folder in (model, other)]
    if sizes[0] != sizes[1]:
        raise _mismatch(f"one predicts {sizes[0]} tokens, the other {sizes[1]}", field)


def _mismatch(said: str, field: str) -> VocabularyMismatch:
    return VocabularyMismatch(
        f"the two models have different vocabularies: {said}",
        remedy="choose models of one family, with the same tokenizer",
        field=field,
    )


def _vocabulary_size(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)
