"""Bringing an artifact home: right bytes in the right place, or a typed error and nothing there."""

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import Answer, Script, cut, cut_after, page, problem, scripted, status

import lathe
from lathe import _retry

LIST = "GET /v1/jobs/job_1/artifacts"
DATA = os.urandom(300_000)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    monkeypatch.setattr(_retry, "START_seconds", 0.01)
    with scripted() as script:
        yield script


def _listed(path: str, data: bytes = DATA) -> dict[str, object]:
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _offer(script: Script, path: str, *answers: Answer, data: bytes = DATA) -> str:
    script.on(LIST, status(200, page(_listed(path, data))))
    where = f"{LIST}/{path}"
    script.on(where, *answers)
    return where


def _download(script: Script, folder: Path) -> tuple[Path, ...]:
    with lathe.Client(script.url) as client:
        return client.artifacts.download("job_1", folder)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_arrive_whole_below_the_folder_and_a_second_time_nothing_moves(server: Script, tmp_path: Path) -> None:
    where = _offer(server, "sub/model.safetensors", status(200, DATA))
    assert _download(server, tmp_path) == (tmp_path / "sub/model.safetensors",)
    assert (tmp_path / "sub/model.safetensors").read_bytes() == DATA
    assert _files(tmp_path) == ["sub/model.safetensors"]
    _download(server, tmp_path)
    assert len(server.sent(where)) == 1
    assert server.sent(where)[0]["accept-encoding"] == "identity"


def test_an_empty_file_is_a_file(server: Script, tmp_path: Path) -> None:
    _offer(server, "empty", status(200, b""), data=b"")
    _download(server, tmp_path)
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_broken_transfer_goes_on_where_it_was(server: Script, tmp_path: Path) -> None:
    half = cut_after(DATA[:100_000], length=len(DATA), kind="application/octet-stream")
    rest = status(206, DATA[100_000:], Content_Range=f"bytes 100000-299999/{len(DATA)}")
    where = _offer(server, "a.bin", half, rest)
    _download(server, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert [headers.get("range") for headers in server.sent(where)] == [None, "bytes=100000-"]


def test_a_transfer_given_up_is_resumed_by_the_next_call(server: Script, tmp_path: Path) -> None:
    half = cut_after(DATA[:100_000], length=len(DATA), kind="application/octet-stream")
    _offer(server, "a.bin", half, cut)
    with pytest.raises(lathe.ConnectionFailed):
        _download(server, tmp_path)
    assert not (tmp_path / "a.bin").exists()
    where = _offer(server, "a.bin", status(206, DATA[100_000:]))
    heard = list[int]()
    with lathe.Client(server.url) as client:
        client.artifacts.download("job_1", tmp_path, on_progress=lambda _, received_bytes: heard.append(received_bytes))
    assert (heard[0], heard[-1]) == (100_000, len(DATA)), "first what was here already, which no speed counts"
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert server.sent(where)[-1]["range"] == "bytes=100000-"


def test_connections_may_be_lost_often_while_each_brings_something(server: Script, tmp_path: Path) -> None:
    pieces = [DATA[at : at + 30_000] for at in range(0, len(DATA), 30_000)]
    first, *middle, last = pieces
    answers = [cut_after(first, length=len(DATA))]
    answers += [cut_after(piece, code=206, length=len(DATA)) for piece in middle]
    where = _offer(server, "a.bin", *answers, status(206, last))
    _download(server, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert len(server.sent(where)) == len(pieces) == 10


def test_connections_that_bring_nothing_new_are_lost_in_vain(server: Script, tmp_path: Path) -> None:
    where = _offer(server, "a.bin", cut_after(DATA[:1000], length=len(DATA)))  # from the beginning, every time
    with pytest.raises(lathe.ConnectionFailed):
        _download(server, tmp_path)
    assert len(server.sent(where)) == 3


def test_a_service_that_ignores_ranges_starts_the_file_again(server: Script, tmp_path: Path) -> None:
    _offer(server, "a.bin", cut_after(DATA[:1000], length=len(DATA)), status(200, DATA))
    _download(server, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_a_tampered_byte_is_refused_and_leaves_nothing(server: Script, tmp_path: Path) -> None:
    tampered = bytes([DATA[0] ^ 1]) + DATA[1:]
    where = _offer(server, "a.bin", status(200, tampered))
    with pytest.raises(lathe.DigestMismatch, match=r"a\.bin came with the wrong bytes"):
        _download(server, tmp_path)
    assert _files(tmp_path) == []
    assert len(server.sent(where)) == 1


def test_a_bad_beginning_left_by_an_earlier_call_costs_one_more_try(server: Script, tmp_path: Path) -> None:
    draft = tmp_path / f".{hashlib.sha256(DATA).hexdigest()[:16]}.part"
    draft.write_bytes(b"\0" * 1000)
    where = _offer(server, "a.bin", status(206, DATA[1000:]), status(200, DATA))
    _download(server, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert [headers.get("range") for headers in server.sent(where)] == ["bytes=1000-", None]


def test_a_draft_longer_than_the_file_is_dropped(server: Script, tmp_path: Path) -> None:
    draft = tmp_path / f".{hashlib.sha256(DATA).hexdigest()[:16]}.part"
    draft.write_bytes(DATA + b"more")
    _offer(server, "a.bin", problem(416, "range"), status(200, DATA))
    _download(server, tmp_path)
    assert _files(tmp_path) == ["a.bin"]


def test_a_draft_that_only_missed_its_name_is_not_fetched_again(server: Script, tmp_path: Path) -> None:
    (tmp_path / f".{hashlib.sha256(DATA).hexdigest()[:16]}.part").write_bytes(DATA)
    where = _offer(server, "a.bin", status(500))
    _download(server, tmp_path)
    assert _files(tmp_path) == ["a.bin"]
    assert server.sent(where) == []


def test_a_service_that_never_stops_sending_is_stopped(server: Script, tmp_path: Path) -> None:
    _offer(server, "a.bin", status(200, DATA * 20))
    with pytest.raises(lathe.DigestMismatch, match="more than 300000 bytes"):
        _download(server, tmp_path)
    assert _files(tmp_path) == []


@pytest.mark.parametrize(
    "path",
    ["../evil", "/etc/evil", "a/../../evil", "a//b", "./a", "", "a\\..\\evil", "C:/evil", "a\nb", "a\x00b", "sub/.."],
)
def test_a_path_that_leaves_the_folder_is_refused_before_anything_is_fetched(
    server: Script, tmp_path: Path, path: str
) -> None:
    server.on(LIST, status(200, page(_listed("good.bin"), _listed(path))))
    folder = tmp_path / "out"
    with pytest.raises(lathe.UnsafePath):
        _download(server, folder)
    assert len(server.requests) == 1
    assert _files(tmp_path) == []


def test_a_link_below_the_folder_leads_nowhere_else(server: Script, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    folder.mkdir()
    (folder / "sub").symlink_to(outside)
    server.on(LIST, status(200, page(_listed("sub/a.bin"))))
    with pytest.raises(lathe.UnsafePath):
        _download(server, folder)
    assert _files(outside) == []


def test_a_listed_digest_that_is_none_is_refused(server: Script, tmp_path: Path) -> None:
    server.on(LIST, status(200, page({"path": "a", "bytes": 1, "sha256": "../../x"})))
    with pytest.raises(lathe.DigestMismatch):
        _download(server, tmp_path)


def test_the_async_client_downloads_the_same_way(server: Script, tmp_path: Path) -> None:
    half = cut_after(DATA[:100_000], length=len(DATA), kind="application/octet-stream")
    _offer(server, "a.bin", half, status(206, DATA[100_000:]))
    seen: list[int] = []

    async def use() -> None:
        async with lathe.AsyncClient(server.url) as client:
            await client.artifacts.download("job_1", tmp_path, on_progress=lambda _, received: seen.append(received))

    asyncio.run(use())
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert (seen[0], seen[-1]) == (0, len(DATA))
    assert seen == sorted(seen)
