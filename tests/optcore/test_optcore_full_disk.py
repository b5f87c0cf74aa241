"""A disk that fills up in the middle of a run: a typed error, nothing half-written, and the same bytes in the end."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.disk import fill, small_disk
from fixtures.tiny_models import MakeModel
from fixtures.whole_runs import walk

from optcore.events import AnyEvent, RunFailed, RunFinished, StageFinished, parse_event

pytestmark = pytest.mark.timeout(300)
SIZE_mebibytes = 64


def _run(
    folder: Path, document: dict[str, Any], limit: str = "", hear: Callable[[AnyEvent], object] = lambda _: None
) -> list[AnyEvent]:
    _write(folder, document)
    folders = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    words = [sys.executable, "-m", "optcore", "run", str(folder / "recipe.yaml"), *folders]
    events = []
    with subprocess.Popen(["sh", "-c", f'{limit}exec "$0" "$@"', *words], stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            events.append(parse_event(line))
            hear(events[-1])
    return events


def _walk(folder: Path, document: dict[str, Any]) -> list[AnyEvent]:
    """The same run in this process."""
    _write(folder, document)
    return walk(folder / "recipe.yaml", folder / "out", folder / "work")


def _write(folder: Path, document: dict[str, Any]) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))


@pytest.fixture
def document(tiny_model: MakeModel) -> dict[str, Any]:
    return {
        "model": {"path": str(tiny_model("Llama"))},
        "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 32},
        "chain": [{"technique": "ptq", "scheme": "int4"}],
        "evaluate": [],
    }


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(tmp_path: Path, document: dict[str, Any]) -> None:
    expected = _walk(tmp_path, document)[-1]
    assert isinstance(expected, RunFinished)
    with small_disk(small := tmp_path / "small", SIZE_mebibytes):

        def fill_before_the_export(event: AnyEvent) -> None:
            if isinstance(event, StageFinished) and event.stage == "1-ptq":
                fill(small)

        failed = _run(small, document, hear=fill_before_the_export)[-1]
        assert isinstance(failed, RunFailed)
        assert (failed.failure.code, failed.failure.stage) == ("out_of_disk", "2-export")
        assert (failed.failure.kind, failed.failure.retryable) == ("infrastructure", True)
        assert not (small / "out").exists()
        print(failed.failure.message)
        (small / "ballast").unlink()
        again = _walk(small, document)
        assert again[-1] == expected
        assert [event.stage for event in again if isinstance(event, StageFinished) and event.cached] == ["1-ptq"]


def test_a_file_beyond_its_limit_is_not_tried_again(tmp_path: Path, document: dict[str, Any]) -> None:
    failed = _run(tmp_path, document, limit="ulimit -f 32; ")[-1]
    assert isinstance(failed, RunFailed)
    assert (failed.failure.code, failed.failure.kind) == ("file_too_large", "infrastructure")
    assert not failed.failure.retryable
    assert not (tmp_path / "out").exists()
