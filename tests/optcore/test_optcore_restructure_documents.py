"""Documents beside weights come with the model, so from anybody: what is none is refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optcore.conditional import load_conditional
from optcore.errors import BadCheckpoint
from optcore.factored import load_factored
from optcore.hashed import load_hashed
from optcore.palettized import load_palettized
from optcore.sparsity import load_sparsity
from optcore.tied import load_tied

LOADS = {
    "conditional.json": load_conditional,
    "low_rank.json": load_factored,
    "hashed.json": load_hashed,
    "palette.json": load_palettized,
    "sparsity.json": load_sparsity,
    "tied.json": load_tied,
}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"version": 1, "surprise": 2}', b"{" * 5000])
@pytest.mark.parametrize("name", LOADS)
def test_what_is_no_such_document_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    load: Callable[[Path], object] = LOADS[name]
    assert load(tmp_path) is None
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=name) as caught:
        load(tmp_path)
    assert caught.value.remedy
