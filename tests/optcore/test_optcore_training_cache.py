"""A teacher's predictions on disk: exact, small, and whole after a kill."""

from pathlib import Path

import pytest
import torch

from optcore.errors import BadCheckpoint, FolderUnusable
from optcore.training.divergences import TopK, forward_kl_top_k, top_k_of
from optcore.training.teacher_cache import IDS, PROBABILITIES, CacheFacts, CacheWriter, TeacherCache

torch.set_num_threads(1)
FACTS = CacheFacts(windows=6, length=5, k=3, vocabulary=50, temperature=2)


def _predictions(facts: CacheFacts) -> TopK:
    """Of every position of every window."""
    shape = facts.windows * facts.length, facts.vocabulary
    logits = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return top_k_of(logits, facts.k, facts.temperature)


def _windows(facts: CacheFacts, top: TopK, first: int, last: int) -> TopK:
    return top.rows(slice(first * facts.length, last * facts.length))


def _write(folder: Path, facts: CacheFacts = FACTS, first: int = 0, last: int | None = None, batch: int = 2) -> None:
    top, end = _predictions(facts), facts.windows if last is None else last
    with CacheWriter(folder, facts) as writer:
        assert writer.written == first
        for start in range(first, end, batch):
            writer.append(_windows(facts, top, start, min(start + batch, end)))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("vocabulary", "id_bytes"), [(50, 2), (65536, 2), (65537, 4)])
def test_a_round_trip_is_exact_for_what_float16_holds(tmp_path: Path, vocabulary: int, id_bytes: int) -> None:
    facts = FACTS.model_copy(update={"vocabulary": vocabulary})
    top = _predictions(facts)
    top.ids[0, 0] = vocabulary - 1
    with CacheWriter(tmp_path, facts) as writer:
        writer.append(top)
    cache = TeacherCache(tmp_path)
    assert (cache.facts, cache.windows) == (facts, 6)
    for chosen in ([0, 1, 2, 3, 4, 5], [4, 0, 4], []):
        rows = [row for window in chosen for row in range(5 * window, 5 * window + 5)]
        found = cache.rows(chosen)
        assert found.ids.dtype == torch.int64
        assert found.temperature == facts.temperature
        assert torch.equal(found.ids, top.ids[rows])
        assert torch.equal(found.probabilities, top.probabilities[rows].half())
        assert torch.equal(found.rest, (1 - top.probabilities[rows].half().float().sum(-1)).clamp(min=0))
    positions = facts.windows * facts.length
    assert facts.bytes_per_token == facts.k * (id_bytes + 2)
    assert (tmp_path / IDS).stat().st_size + (tmp_path / PROBABILITIES).stat().st_size == 30 * facts.bytes_per_token
    print(f"\nV = {vocabulary}, k = {facts.k}: {facts.bytes_per_token} bytes a token over {positions} positions")


def test_a_hundred_tokens_take_four_hundred_bytes() -> None:
    assert CacheFacts(windows=1, length=1, k=100, vocabulary=50_000).bytes_per_token == 400


def test_the_files_are_plain_arrays(tmp_path: Path) -> None:
    _write(tmp_path)
    top = _predictions(FACTS)
    assert (tmp_path / IDS).read_bytes() == top.ids.numpy().astype("<u2").tobytes()
    assert (tmp_path / PROBABILITIES).read_bytes() == top.probabilities.numpy().astype("<f2").tobytes()


def test_the_loss_survives_float16(tmp_path: Path) -> None:
    _write(tmp_path)
    student = torch.randn(30, 50, generator=torch.Generator().manual_seed(4))
    exact = forward_kl_top_k(student, _predictions(FACTS))
    cached = TeacherCache(tmp_path).rows(range(6))
    torch.testing.assert_close(forward_kl_top_k(student, cached), exact, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("stopped", [1, 2, 5, 6])
def test_a_writer_goes_on_where_another_stopped(tmp_path: Path, stopped: int) -> None:
    _write(tmp_path / "whole")
    _write(tmp_path / "parts", last=stopped, batch=1)
    assert TeacherCache(tmp_path / "parts").windows == stopped
    _write(tmp_path / "parts", first=stopped)
    assert _files(tmp_path / "parts") == _files(tmp_path / "whole")


@pytest.mark.parametrize("name", [IDS, PROBABILITIES])
@pytest.mark.parametrize(("kept", "whole"), [(0, 0), (1, 0), (59, 1), (60, 2), (61, 2), (119, 3)])
def test_a_cut_file_is_continued_behind_its_last_whole_window(tmp_path: Path, name: str, kept: int, whole: int) -> None:
    """A window is 30 bytes in either file, and four of them were counted."""
    _write(tmp_path / "whole")
    _write(tmp_path / "cut", last=4)
    with (tmp_path / "cut" / name).open("r+b") as file:
        file.truncate(kept)
    _write(tmp_path / "cut", first=whole)
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


def test_bytes_that_were_never_counted_are_written_again(tmp_path: Path) -> None:
    """Killed between the bytes and the count."""
    _write(tmp_path / "whole")
    _write(tmp_path / "killed", last=4)
    for name, more in ((IDS, 70), (PROBABILITIES, 13)):
        with (tmp_path / "killed" / name).open("ab") as file:
            file.write(b"\xff" * more)
    assert TeacherCache(tmp_path / "killed").windows == 4
    _write(tmp_path / "killed", first=4)
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def test_an_append_that_failed_half_way_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "whole")
    top = _predictions(FACTS)

    def refuse(writer: CacheWriter, written: int) -> None:
        raise OSError("no more")

    with CacheWriter(tmp_path / "tried", FACTS) as writer:
        writer.append(_windows(FACTS, top, 0, 2))
        with monkeypatch.context() as patched:
            patched.setattr(CacheWriter, "_count", refuse)
            with pytest.raises(FolderUnusable):
                writer.append(_windows(FACTS, top, 2, 5))
        assert writer.written == 2
        writer.append(_windows(FACTS, top, 2, 6))
    assert _files(tmp_path / "tried") == _files(tmp_path / "whole")


def test_another_cache_is_not_continued(tmp_path: Path) -> None:
    _write(tmp_path, last=2)
    for change in ({"temperature": 1}, {"length": 4}, {"k": 2}):
        with pytest.raises(ValueError, match="another cache"):
            CacheWriter(tmp_path, FACTS.model_copy(update=change))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    top = _predictions(FACTS)
    with CacheWriter(tmp_path, FACTS) as writer:
        for wrong in (top.rows(slice(0, 7)), TopK(top.ids[:5, :2], top.probabilities[:5, :2])):
            with pytest.raises(ValueError, match="no windows"):
                writer.append(wrong)
        with pytest.raises(ValueError, match="token 70000"):
            writer.append(TopK(top.ids[:5] * 0 + 70_000, top.probabilities[:5]))
        with pytest.raises(BadCheckpoint, match="not finite"):
            writer.append(TopK(top.ids[:5], top.probabilities[:5] * torch.nan))
        writer.append(top)
        with pytest.raises(ValueError, match="no windows"):
            writer.append(_windows(FACTS, top, 0, 1))
    assert torch.equal(TeacherCache(tmp_path).rows(range(6)).ids, top.ids)


def test_damage_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="cannot read the teacher"):
        TeacherCache(tmp_path)
    _write(tmp_path, last=4)
    with pytest.raises(IndexError, match="window 4 of 4"):
        TeacherCache(tmp_path).rows([0, 4])
    with (tmp_path / IDS).open("r+b") as file:
        file.truncate(119)
    assert len(TeacherCache(tmp_path).rows([2]).ids) == 5
    with pytest.raises(BadCheckpoint, match="ends too early"):
        TeacherCache(tmp_path).rows([3])
    (tmp_path / "cache.json").write_text('{"facts": {}, "written": 4}')
    with pytest.raises(BadCheckpoint, match=r"cache\.json"):
        TeacherCache(tmp_path)
