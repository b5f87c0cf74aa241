"""Documents beside weights come with the model, so from anybody: what is none is refused by name."""

from collections.abc import Callable
from pathlib import Path

import pytest

from optcore.conditional import load_conditional
from optcore.errors import BadCheckpoint
from optcore.factored import load_factored
from optcore.hashed import load_hashed
from optcore.palettized import load_palettized
from optcore.references import ModelRef
from optcore.sources.models import fetch_model
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


def test_a_job_begins_with_a_plain_model(stdlib_model: Path, tmp_path: Path) -> None:
    for path in stdlib_model.iterdir():
        (tmp_path / path.name).symlink_to(path.absolute())
    (tmp_path / "conditional.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"conditional\.json says .* begins with a plain model") as caught:
        fetch_model(ModelRef(path=str(tmp_path)), tmp_path / "cache", lambda *_: None)
    assert "one chain" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"version": 1, "surprise": 2}', b"{" * 5000])
@pytest.mark.parametrize("name", LOADS)
def test_what_is_no_such_document_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    load: Callable[[Path], object] = LOADS[name]
    assert load(tmp_path) is None
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadCheckpoint, match=name) as caught:
        load(tmp_path)
    assert caught.value.remedy
