"""What the driver's tool can say of a GPU, and what it means for the jobs that wait."""

from pathlib import Path

import pytest

from worker import gpus
from worker.capacity import capacity
from worker.gpus import Gpu, GpusUnknown, visible


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in the place of `nvidia-smi`."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "ANSWER_seconds", 0.5)
    return tmp_path / "nvidia-smi"


def _write(script: Path, *lines: str) -> None:
    script.write_text("\n".join(["#!/bin/sh", *lines]))
    script.chmod(0o755)


def test_the_smallest_card_counts(driver: Path) -> None:
    _write(driver, "echo 'GPU-a, NVIDIA H200, 143771, 0'", "echo 'GPU-b, NVIDIA H200, 143000, [N/A]'")
    found = visible()
    assert found[0] == Gpu("GPU-a", "NVIDIA H200", 143771 * 2**20)
    assert [gpu.trouble for gpu in found] == ["", ""]
    offered = capacity(found)
    assert (offered.device, offered.gpus, offered.gpu_memory_bytes) == ("cuda", 2, 143000 * 2**20)


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ("143771, 1", "1 uncorrectable memory errors"),
        ("[GPU requires reset], [GPU requires reset]", "its memory is [GPU requires reset]"),
        ("143771, [Unknown Error]", "its error counter is [Unknown Error]"),
    ],
)
def test_a_card_that_is_ill_says_so_in_words_or_numbers(driver: Path, said: str, trouble: str) -> None:
    _write(driver, f"echo 'GPU-a, NVIDIA H200, {said}'")
    assert [gpu.trouble for gpu in visible()] == [trouble]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (["echo 'Unable to determine the device handle: GPU is lost'", "exit 15"], "GPU is lost"),
        (["exec sleep 60"], "has not answered"),
    ],
)
def test_a_driver_that_does_not_answer_is_no_machine_without_gpus(driver: Path, lines: list[str], why: str) -> None:
    _write(driver, *lines)
    with pytest.raises(GpusUnknown, match=why):
        visible()


def test_no_driver_and_no_visible_device_are_no_gpus(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible() == ()
    _write(driver, "exit 1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == ()
    assert capacity(()).device == "cpu"
