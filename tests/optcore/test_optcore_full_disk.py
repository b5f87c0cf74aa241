"""A disk that fills up in the middle of a run: a typed error, nothing half-written, and the same bytes in the end."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.tiny_models import MakeModel

from optcore.events import AnyEvent, RunFailed, RunFinished, StageFinished, parse_event

pytestmark = pytest.mark.timeout(300)
SIZE_bytes = 64 * 2**20


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """A small file system; skipped where we may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_bytes}", "lathe-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk has to be mounted, and this account may not")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path) -> None:
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                continue
        except OSError as error:
            print(f"filled: {error.strerror}")


def _run(
    folder: Path, document: dict[str, Any], limit: str = "", hear: Callable[[AnyEvent], object] = lambda _: None
) -> list[AnyEvent]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    folders = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    words = [sys.executable, "-m", "optcore", "run", str(folder / "recipe.yaml"), *folders]
    events = []
    with subprocess.Popen(["sh", "-c", f'{limit}exec "$0" "$@"', *words], stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            events.append(parse_event(line))
            hear(events[-1])
    return events


@pytest.fixture
def document(tiny_model: MakeModel) -> dict[str, Any]:
    return {
        "model": {"path": str(tiny_model("Llama"))},
        "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 32},
        "chain": [{"technique": "ptq", "scheme": "int4"}],
        "evaluate": [],
    }


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(tmp_path: Path, document: dict[str, Any]) -> None:
    expected = _run(tmp_path, document)[-1]
    assert isinstance(expected, RunFinished)
    with _disk(small := tmp_path / "small"):

        def fill_before_the_export(event: AnyEvent) -> None:
            if isinstance(event, StageFinished) and event.stage == "1-ptq":
                _fill(small)

        failed = _run(small, document, hear=fill_before_the_export)[-1]
        assert isinstance(failed, RunFailed)
        assert (failed.failure.code, failed.failure.stage) == ("out_of_disk", "2-export")
        assert (failed.failure.kind, failed.failure.retryable) == ("infrastructure", True)
        assert not (small / "out").exists()
        print(failed.failure.message)
        (small / "ballast").unlink()
        again = _run(small, document)
        assert again[-1] == expected
        assert [event.stage for event in again if isinstance(event, StageFinished) and event.cached] == ["1-ptq"]


def test_a_file_beyond_its_limit_is_not_tried_again(tmp_path: Path, document: dict[str, Any]) -> None:
    failed = _run(tmp_path, document, limit="ulimit -f 32; ")[-1]
    assert isinstance(failed, RunFailed)
    assert (failed.failure.code, failed.failure.kind) == ("file_too_large", "infrastructure")
    assert not failed.failure.retryable
    assert not (tmp_path / "out").exists()
