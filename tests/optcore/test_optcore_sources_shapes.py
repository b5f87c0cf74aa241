"""The outline of a model on the Hub, through the real client from a local peer."""

import json
from pathlib import Path

import pytest
from fixtures.hub import OTHER_TOKEN, OWNER_TOKEN, HubPeer
from huggingface_hub import constants

import optcore.sources.client
from optcore.errors import BadCheckpoint, SourceGated, SourceNotFound, UnsafeCheckpoint
from optcore.references import ModelRef
from optcore.sizes import read_header
from optcore.sources.shapes import MOST_bytes, remote_shapes


@pytest.fixture(autouse=True)
def _quick_and_open(monkeypatch: pytest.MonkeyPatch, hub: HubPeer) -> None:
    monkeypatch.setattr(optcore.sources.client, "WAITS_seconds", (0.01, 0.01))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)


def test_it_is_what_the_headers_say_and_no_weight_is_fetched(hub: HubPeer, stdlib_model: Path) -> None:
    commit = hub.put_folder("me/small", stdlib_model)
    before = len(hub.requests)
    found = remote_shapes(ModelRef(id="me/small"))
    header = read_header(stdlib_model / "model.safetensors")
    assert found.tensors == {name: (tuple(one["shape"]), one["dtype"]) for name, one in header.items()}
    assert found.config == json.loads((stdlib_model / "config.json").read_text())
    assert found.commit == commit
    assert 0 < len(hub.requests) - before < 12


def test_a_private_model_is_shown_to_who_may_read_it(hub: HubPeer, stdlib_model: Path) -> None:
    hub.put_folder("me/secret", stdlib_model, private=True)
    assert remote_shapes(ModelRef(id="me/secret"), token=OWNER_TOKEN).tensors
    for token in (None, OTHER_TOKEN):  # the account's own HF_TOKEN is never lent
        with pytest.raises(SourceNotFound) as caught:
            remote_shapes(ModelRef(id="me/secret"), "/chain/0/teacher", token)
        assert caught.value.field == "/chain/0/teacher/id"


def test_a_gated_model_says_so(hub: HubPeer, stdlib_model: Path) -> None:
    hub.put_folder("me/gated", stdlib_model, gated="auto")
    with pytest.raises(SourceGated):
        remote_shapes(ModelRef(id="me/gated"), token=OTHER_TOKEN)


def test_pickles_and_damaged_headers_are_refused(hub: HubPeer) -> None:
    beside = {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{}"}
    hub.put("me/pickled", {**beside, "pytorch_model.bin": b"x"})
    with pytest.raises(UnsafeCheckpoint):
        remote_shapes(ModelRef(id="me/pickled"))


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}']
)
def test_a_damaged_header_is_refused(hub: HubPeer, header: bytes) -> None:
    weights = len(header).to_bytes(8, "little") + header + bytes(200)
    hub.put("me/damaged", {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": weights})
    with pytest.raises(BadCheckpoint, match="damaged header"):
        remote_shapes(ModelRef(id="me/damaged"))


def test_large_documents_are_not_fetched(hub: HubPeer) -> None:
    """They are read whole, in the memory of the service that was asked."""
    config = '{"a": "' + "x" * MOST_bytes["config.json"] + '"}'
    hub.put("me/large", {"config.json": config, "tokenizer.json": "{}", "model.safetensors": b"x"})
    with pytest.raises(BadCheckpoint, match=r"config\.json of \d+ bytes"):
        remote_shapes(ModelRef(id="me/large"))
    assert not [line for line in hub.requests if "resolve" in line]


def test_shards_are_those_that_the_index_names(
    hub: HubPeer, stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    weights = (stdlib_model / "model.safetensors").read_bytes()
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}
    files = {"config.json": "{}", "tokenizer.json": "{}", "one.safetensors": weights}
    hub.put("me/sharded", {**files, "model.safetensors.index.json": json.dumps(index), "other.safetensors": b"x"})
    found = remote_shapes(ModelRef(id="me/sharded"))
    assert list(found.tensors) == list(read_header(stdlib_model / "model.safetensors"))
    assert not cache.exists(), "nobody sweeps the account's own cache"
    for wrong in ({"weight_map": {"a": "none.safetensors"}}, {"weight_map": {}}, {"weight_map": 3}, {}):
        hub.put("me/sharded", {"model.safetensors.index.json": json.dumps(wrong)})
        with pytest.raises(BadCheckpoint, match="names other files"):
            remote_shapes(ModelRef(id="me/sharded"))
    many = {"weight_map": {str(number): f"{number}.safetensors" for number in range(2001)}}
    hub.put("me/sharded", {"model.safetensors.index.json": json.dumps(many)})
    with pytest.raises(BadCheckpoint, match="more than 2000 files"):
        remote_shapes(ModelRef(id="me/sharded"))
