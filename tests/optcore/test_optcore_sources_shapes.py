"""The outline of a model on the Hub, through the real client from a local peer."""

import json
from pathlib import Path

import pytest
from fixtures.hub import OTHER_TOKEN, OWNER_TOKEN, HubPeer

import optcore.sources.client
from optcore.errors import BadCheckpoint, SourceGated, SourceNotFound, UnsafeCheckpoint
from optcore.references import ModelRef
from optcore.sizes import read_header
from optcore.sources.shapes import remote_shapes


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
