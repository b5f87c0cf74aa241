"""What a report says that it was computed on."""

import os
import platform
from pathlib import Path

import pytest

from optcore.gpus import gpu_names
from optcore.hardware import cpu_model, hardware

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model\t\t: 173
model name\t: Intel(R) Xeon(R)  6980P
flags\t\t: fpu vme

processor\t: 1
model name\t: another
"""
INFORMATION = """Model: \t\t {model}
IRQ:   \t\t 123
GPU UUID: \t {uuid}
Bus Location: \t 0000:{bus}:00.0
Device Minor: \t {minor}
"""


def put_cards(folder: Path, *models: str) -> tuple[Path, Path]:
    """The driver's folders of these cards, on a bus whose order is that of the names."""
    cards, devices = folder / "cards", folder / "dev"
    devices.mkdir()
    for minor, model in enumerate(models):
        (devices / f"nvidia{minor}").touch()
        place = cards / f"0000:{minor}a:00.0"
        place.mkdir(parents=True)
        said = INFORMATION.format(model=model, uuid=f"GPU-{minor}f00", bus=f"{minor}a", minor=minor)
        (place / "information").write_text(said)
    return cards, devices


def test_the_processor_is_named(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert cpu_model(tmp_path / "cpuinfo") == "Intel(R) Xeon(R) 6980P"
    (tmp_path / "arm").write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    assert cpu_model(tmp_path / "arm") == cpu_model(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        (None, ("NVIDIA H200", "NVIDIA L4")),
        ("", ()),
        ("1", ("NVIDIA L4",)),
        ("1,0", ("NVIDIA L4", "NVIDIA H200")),
        ("0,-1,1", ("NVIDIA H200",)),
        ("GPU-1f", ("NVIDIA L4",)),
        ("MIG-1f00", ("GPU",)),
        ("GPU-", ("GPU",)),
        ("7", ("GPU",)),
    ],
)
def test_unlike_cards_are_named_as_they_are_chosen(
    chosen: str | None, named: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert gpu_names(*put_cards(tmp_path, "NVIDIA H200", "NVIDIA L4")) == named


def test_like_cards_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards, devices = put_cards(tmp_path, "NVIDIA H200", "NVIDIA H200", "NVIDIA H200")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,2")
    assert gpu_names(cards, devices) == ("NVIDIA H200",) * 2
    assert gpu_names(tmp_path / "hidden", devices) == ("GPU",) * 2
    assert gpu_names(tmp_path / "hidden", tmp_path / "no-driver") == ()


def test_this_machine_is_told_in_one_line() -> None:
    told = hardware()
    assert told.startswith(f"{platform.machine()}, ")
    assert f"{os.cpu_count()} CPU cores" in told
    assert cpu_model() in told
    assert "\n" not in told
