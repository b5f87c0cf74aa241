"""Bringing a model here, from a folder and through the real client from a local peer of the Hub."""

import json
import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import pytest
from fixtures.hub import OTHER_TOKEN, OWNER_TOKEN, HubPeer

import optcore.sources.client
from optcore.errors import (
    BadCheckpoint,
    HubUnavailable,
    OptError,
    OutOfDisk,
    SourceGated,
    SourceNotFound,
    UnsafeCheckpoint,
)
from optcore.references import ModelRef
from optcore.sources.models import FetchedModel, fetch_model

Reports = list[tuple[str, int, int]]


def safetensors(*names: str) -> bytes:
    """A file with one float32 for every name."""
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + os.urandom(4 * len(names))


@pytest.fixture(autouse=True)
def _quick_and_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optcore.sources.client, "WAITS_seconds", (0.01, 0.01))
    monkeypatch.delenv("LATHE_MODEL_ROOTS", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in one file."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "tokenizer.json").write_text("{}")
    (made / "model.safetensors").write_bytes(safetensors("a", "b"))
    (made / "README.md").write_text("---\nlicense: mit\n---\n")
    return made


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same in two files."""
    (folder / "model.safetensors").unlink()
    (folder / "one.safetensors").write_bytes(safetensors("a"))
    (folder / "two.safetensors").write_bytes(safetensors("b"))
    write_index(folder, "one.safetensors", "two.safetensors")
    return folder


def write_index(folder: Path, a: str, b: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": a, "b": b}}))


def from_folder(path: Path) -> FetchedModel:
    return fetch_model(ModelRef(path=str(path)), path.parent / "cache", lambda *_: None)


def refusal(path: Path, kind: type[OptError]) -> str:
    with pytest.raises(kind) as caught:
        from_folder(path)
    assert caught.value.field == "/model/path"
    assert caught.value.remedy
    return caught.value.message


def test_a_folder_is_used_where_it_lies_and_its_digest_is_its_content(folder: Path, tmp_path: Path) -> None:
    fetched = from_folder(folder)
    assert fetched[:2] == (folder, None)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").write_text("a card says nothing about the weights")
    (copy / "pytorch_model.bin").write_bytes(b"not read")
    assert from_folder(copy).digest == fetched.digest
    (copy / "config.json").write_text('{"model_type": "qwen3"}')
    assert from_folder(copy).digest != fetched.digest


def test_hashing_is_reported_to_the_end(folder: Path) -> None:
    seen: Reports = []
    fetch_model(ModelRef(path=str(folder)), folder, lambda *report: seen.append(report))
    assert {phase for phase, _, _ in seen} == {"hashing"}
    assert seen[-1][1] == seen[-1][2] > 0


def test_shards_are_found_by_the_index(sharded: Path) -> None:
    assert from_folder(sharded).digest
    (sharded / "two.safetensors").unlink()
    assert "two.safetensors is missing" in refusal(sharded, BadCheckpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refusal(folder, BadCheckpoint)


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    assert "absent" in refusal(tmp_path / "absent", SourceNotFound)


def test_pickled_weights_alone_are_unsafe(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(folder, UnsafeCheckpoint)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/one.safetensors", "..\\one.safetensors", "one.bin"])
def test_an_index_entry_that_leaves_the_folder_is_unsafe(sharded: Path, name: str) -> None:
    shutil.copy(sharded / "one.safetensors", sharded.parent / "one.safetensors")
    write_index(sharded, name, "two.safetensors")
    assert "names" in refusal(sharded, UnsafeCheckpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_that_leaves_the_folder_is_unsafe(folder: Path, name: str) -> None:
    outside = (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(outside)
    assert "link that leaves" in refusal(folder, UnsafeCheckpoint)


def test_a_snapshot_of_the_clients_cache_may_link_to_its_blobs(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--x" / "snapshots" / "abc"
    blobs = tmp_path / "models--me--x" / "blobs"
    shutil.copytree(folder, snapshot)
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert from_folder(snapshot).digest == from_folder(folder).digest


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"", lambda b: b"\xff" * 64])
def test_a_cut_or_damaged_file_is_bad(folder: Path, damage: object) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))  # type: ignore[operator]
    assert "model.safetensors is cut or damaged" in refusal(folder, BadCheckpoint)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_config_that_is_no_object_is_bad(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json is not" in refusal(folder, BadCheckpoint)


def test_a_bomb_beside_or_in_the_weights_is_refused_at_once(folder: Path) -> None:
    """None of them is read: the files are as large as they claim, and sparse."""
    weights, gigabytes = (folder / "model.safetensors").read_bytes(), 5 * 2**30
    tracemalloc.start()
    try:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / name).touch()
            before = (folder / name).read_bytes()
            os.truncate(folder / name, gigabytes)
            assert f"{name} has {gigabytes} bytes" in refusal(folder, BadCheckpoint)
            (folder / name).unlink()
            if before:
                (folder / name).write_bytes(before)
        (folder / "model.safetensors").write_bytes((gigabytes - 8).to_bytes(8, "little"))
        os.truncate(folder / "model.safetensors", gigabytes)
        assert "cut or damaged" in refusal(folder, BadCheckpoint)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    (folder / "model.safetensors").write_bytes(weights)
    assert from_folder(folder).digest


@pytest.mark.parametrize("deep", ["[" * 10**6, '{"a":' * 10**6, '{"a":' + "9" * 10**6 + "}"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "the header"])
def test_json_that_would_exhaust_its_parser_is_bad(name: str, deep: str, folder: Path) -> None:
    if name == "the header":
        (folder / "model.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep.encode() + bytes(16))
    else:
        (folder / name).write_text(deep)
    assert refusal(folder, BadCheckpoint)


def test_paths_are_confined_to_the_allowed_roots(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATHE_MODEL_ROOTS", f"/nowhere:{folder.parent}")
    assert from_folder(folder).digest
    monkeypatch.setenv("LATHE_MODEL_ROOTS", str(tmp_path / "allowed"))
    for path in (folder, tmp_path / "allowed" / ".." / "model", tmp_path / "absent"):
        assert "outside the folders" in refusal(path, UnsafeCheckpoint)
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(folder)
    assert "outside the folders" in refusal(tmp_path / "allowed" / "link", UnsafeCheckpoint)
    monkeypatch.setenv("LATHE_MODEL_ROOTS", "")
    assert "outside the folders" in refusal(folder, UnsafeCheckpoint)


# From the Hub


@pytest.fixture
def at_hub(hub: HubPeer, monkeypatch: pytest.MonkeyPatch) -> HubPeer:
    """A peer that the environment names, without a token."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return hub


def from_hub(cache: Path, reports: Reports | None = None, **model: str) -> FetchedModel:
    seen: Reports = [] if reports is None else reports
    return fetch_model(ModelRef(**{"id": "me/small", **model}), cache, lambda *report: seen.append(report))


def hub_refusal(kind: type[OptError], cache: Path, **model: str) -> OptError:
    with pytest.raises(kind) as caught:
        from_hub(cache, **model)
    return caught.value


def test_a_branch_is_pinned_and_only_safe_files_come(at_hub: HubPeer, folder: Path, tmp_path: Path) -> None:
    commit = at_hub.put_folder("me/small", folder)
    extra = {"modeling_evil.py": "boom", "pytorch_model.bin": b"boom", "training.pt": "boom", "sub/x.safetensors": b"x"}
    commit = at_hub.put("me/small", extra)
    reports: Reports = []
    fetched = from_hub(tmp_path / "cache", reports)
    assert fetched.revision == commit
    names = {path.name for path in fetched.path.iterdir() if not path.name.startswith(".")}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "README.md"}
    assert not any(path.is_symlink() for path in fetched.path.rglob("*"))
    assert fetched.digest == from_folder(folder).digest
    assert [phase for phase, done, total in reports if done == total] == ["downloading", "hashing"]


def test_a_pinned_commit_stays_when_the_branch_moves(at_hub: HubPeer, folder: Path, tmp_path: Path) -> None:
    first = at_hub.put_folder("me/small", folder)
    at_hub.put("me/small", {"config.json": '{"model_type": "other"}'})
    pinned, moved = from_hub(tmp_path, revision=first), from_hub(tmp_path)
    assert (pinned.revision, pinned.digest) == (first, from_folder(folder).digest)
    assert moved.revision != first
    assert moved.digest != pinned.digest


def test_shards_come_by_the_index(at_hub: HubPeer, sharded: Path, tmp_path: Path) -> None:
    at_hub.put_folder("me/small", sharded)
    at_hub.put("me/small", {"three.safetensors": safetensors("c")})
    fetched = from_hub(tmp_path / "cache")
    assert fetched.digest == from_folder(sharded).digest
    assert not (fetched.path / "three.safetensors").exists()


def test_a_second_fetch_downloads_nothing(at_hub: HubPeer, folder: Path, tmp_path: Path) -> None:
    at_hub.put_folder("me/small", folder)
    first = from_hub(tmp_path)
    at_hub.requests.clear()
    assert from_hub(tmp_path) == first
    assert not [line for line in at_hub.requests if "resolve" in line]


def test_an_absent_repository_and_an_absent_revision_name_their_fields(
    at_hub: HubPeer, folder: Path, tmp_path: Path
) -> None:
    at_hub.put_folder("me/small", folder)
    absent = hub_refusal(SourceNotFound, tmp_path, id="me/typo")
    assert (absent.field, "me/typo" in absent.message) == ("/model/id", True)
    assert "credential" in absent.remedy
    revision = hub_refusal(SourceNotFound, tmp_path, revision="v9")
    assert (revision.field, "v9" in revision.message) == ("/model/revision", True)


def test_a_private_repository_needs_its_owners_token(
    at_hub: HubPeer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hub.put_folder("me/small", folder, private=True)
    assert hub_refusal(SourceNotFound, tmp_path).field == "/model/id"
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    assert "credential" in hub_refusal(SourceNotFound, tmp_path).remedy
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    refused = hub_refusal(SourceGated, tmp_path)
    assert "store a Hub credential" in refused.remedy
    assert "hf_expired" not in refused.message + refused.remedy
    monkeypatch.setenv("HF_TOKEN", OWNER_TOKEN)
    assert from_hub(tmp_path).digest == from_folder(folder).digest


@pytest.mark.parametrize("token", ["", OTHER_TOKEN])
def test_a_gated_repository_says_what_to_do(
    at_hub: HubPeer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    at_hub.put_folder("me/small", folder, gated="manual")
    monkeypatch.setenv("HF_TOKEN", token)
    gated = hub_refusal(SourceGated, tmp_path)
    assert gated.field == "/model/id"
    assert "store a Hub credential" in gated.remedy
    at_hub.put("me/small", {}, granted=["other"])
    if token:
        assert from_hub(tmp_path).revision


def test_pickled_and_incomplete_repositories_are_refused_before_downloading(at_hub: HubPeer, tmp_path: Path) -> None:
    at_hub.put("me/small", {"config.json": "{}", "tokenizer.json": "{}", "pytorch_model.bin": b"boom"})
    assert "pytorch_model.bin" in hub_refusal(UnsafeCheckpoint, tmp_path).message
    at_hub.put("me/small", {"model.safetensors.index.json": '{"weight_map": {"a": "../../../x.safetensors"}}'})
    assert hub_refusal(UnsafeCheckpoint, tmp_path).field == "/model/id"
    at_hub.put("me/small", {"model.safetensors.index.json": '{"weight_map": {"a": "gone.safetensors"}}'})
    assert "gone.safetensors" in hub_refusal(BadCheckpoint, tmp_path).message
    assert not [line for line in at_hub.requests if "pytorch_model" in line]


@pytest.mark.parametrize("line", ["GET /api/models", "HEAD .*model.safetensors", "GET .*resolve.*model.safetensors"])
@pytest.mark.parametrize("status", [429, 503])
def test_one_unavailable_answer_is_survived(
    at_hub: HubPeer, folder: Path, tmp_path: Path, line: str, status: int
) -> None:
    at_hub.put_folder("me/small", folder)
    at_hub.fail(line, status, headers={"Retry-After": "0"})
    assert from_hub(tmp_path / "cache").digest == from_folder(folder).digest


@pytest.mark.parametrize("line", ["GET /api/models", "HEAD .*resolve"])
def test_a_hub_that_stays_away_is_retryable(
    at_hub: HubPeer, folder: Path, tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)  # the client waits 23 s
    at_hub.put_folder("me/small", folder)
    at_hub.fail(line, 503, times=1000)
    unavailable = hub_refusal(HubUnavailable, tmp_path)
    assert unavailable.retryable
    assert "HTTP 503" in unavailable.message


def test_no_server_is_retryable(tmp_path: Path) -> None:
    unavailable = hub_refusal(HubUnavailable, tmp_path)
    assert "did not answer" in unavailable.message
    assert unavailable.failure().retryable


def test_a_damaged_download_is_noticed_and_replaced(at_hub: HubPeer, folder: Path, tmp_path: Path) -> None:
    at_hub.put_folder("me/small", folder)
    weights = from_hub(tmp_path / "cache").path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"flip")
    assert "damaged" in hub_refusal(HubUnavailable, tmp_path / "cache").message
    assert from_hub(tmp_path / "cache").digest == from_folder(folder).digest


def test_a_download_that_cannot_fit_is_not_begun(
    hub: HubPeer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put_folder("me/large", folder)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OutOfDisk, match="GiB are free") as caught:
        fetch_model(ModelRef(id="me/large"), tmp_path / "cache", lambda *_: None)
    assert caught.value.field == "/model/id"
    assert not [request for request in hub.requests if "resolve" in request and "model.safetensors" in request]
