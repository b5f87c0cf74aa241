"""Block drafts whose configuration lies: read from anywhere, and trusted by nobody."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.draft_folders import FACTS, LAYERS, SIZE, block

from optcore.drafts.folder import read_parts, write_parts
from optcore.errors import BadCheckpoint

Change = Callable[[dict[str, Any]], object]


def _mask(value: object) -> Change:
    return lambda config: config["dflash_config"].update(mask_token_id=value)


def _size(value: object) -> Change:
    return lambda config: config.update(block_size=value)


def _refused(folder: Path, change: Change, said: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=said) as caught:
        read_parts(folder, LAYERS)
    assert caught.value.remedy


@pytest.mark.parametrize("mask", [7, None], ids=["a token", "learned"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_mask(SIZE), f"mask_token_id: {SIZE}, and its target knows tokens 0 to {SIZE - 1}"),
        (_mask(10**9), "mask_token_id: 1000000000"),
        (_mask(-1), "mask_token_id: -1"),
        (_mask("x"), "mask_token_id: 'x'"),
        (_mask(True), "mask_token_id: True"),
        (_size(1), "block_size: 1, and blocks of 2 to 256"),
        (_size(257), "block_size: 257, and blocks of 2 to 256"),
        (_size(2**24), "block_size: 16777216"),
    ],
)
def test_a_mask_that_is_no_token_and_a_block_without_end_are_refused(
    mask: int | None, change: Change, said: str, tmp_path: Path
) -> None:
    write_parts(block(mask_token=mask), tmp_path, "dflash", FACTS)
    assert read_parts(tmp_path, LAYERS).mask_token == mask
    _refused(tmp_path, change, said)


def test_guesses_for_which_nothing_stands_are_refused(tmp_path: Path) -> None:
    write_parts(block(), tmp_path, "dflash", FACTS)
    _refused(tmp_path, _mask(None), "neither mask_token_id nor mask_embedding")
