"""Too little memory is said before anything is loaded, and what fits is not refused."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import training_run

from optcore.errors import OutOfMemory
from optcore.estimate.facts import from_folder
from optcore.host_memory import capacity_bytes, machine_bytes
from optcore.streaming.reader import TensorReader
from optcore.techniques import Distill, Finetune, HashShare, Palettize, Sparsify, TieLayers
from optcore.techniques.base import Technique
from optcore.tied import load_tied
from optcore.training import memory
from optcore.training.adapters import add_adapters
from optcore.training.constraints import Shared, constraints_of, held_bytes
from optcore.training.footprint import Footprint, footprint
from optcore.training.memory import check_footprint, check_memory
from optcore.training.quantized_base import hold_in_nf4
from optcore.training.ranks import Ranks
from optcore.training.student import Student

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MIB = 2**20
ROOM = 1.1


def _group(folder: Path, limit: str, used: int, *, inactive: int = 0, active: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file {active}\nshmem 7\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 1000 MiB free; this process is in the group `jobs/one`."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 2000000 kB\nMemAvailable: {1000 * 1024} kB\n")
    (tmp_path / "proc/self/cgroup").write_text("12:cpu:/elsewhere\n0::/jobs/one\n")
    (tmp_path / "sys/fs/cgroup/jobs/one").mkdir(parents=True)
    return tmp_path


class TestFree:
    def test_without_groups_the_machine_counts(self, root: Path) -> None:
        assert machine_bytes(root) == 1000 * MIB
        (root / "proc/self/cgroup").unlink()
        assert machine_bytes(root) == 1000 * MIB

    def test_cached_files_are_free(self, root: Path) -> None:
        _group(root / "sys/fs/cgroup/jobs/one", str(500 * MIB), 400 * MIB, inactive=200 * MIB, active=100 * MIB)
        assert machine_bytes(root) == 400 * MIB

    def test_the_smallest_room_of_all_groups_around_counts(self, root: Path) -> None:
        groups = root / "sys/fs/cgroup"
        _group(groups / "jobs/one", str(700 * MIB), 100 * MIB)
        assert machine_bytes(root) == 600 * MIB
        _group(groups / "jobs", str(900 * MIB), 400 * MIB)
        assert machine_bytes(root) == 500 * MIB
        _group(groups, str(950 * MIB), 650 * MIB)
        assert machine_bytes(root) == 300 * MIB
        _group(groups / "jobs/other", str(10 * MIB), 0)
        _group(groups / "jobs/one", "max", 0)
        assert machine_bytes(root) == 300 * MIB
        _group(groups / "jobs/one", str(MIB), 2 * MIB)
        assert machine_bytes(root) == 0

    def test_what_others_hold_now_is_no_matter_of_capacity(self, root: Path) -> None:
        groups = root / "sys/fs/cgroup"
        assert capacity_bytes(root) == 2000000 * 1024
        _group(groups / "jobs/one", "max", 900 * MIB)
        _group(groups / "jobs", str(700 * MIB), 600 * MIB)
        _group(groups / "jobs/other", str(10 * MIB), 0)
        assert capacity_bytes(root) == 700 * MIB
        (root / "proc/self/cgroup").unlink()
        assert capacity_bytes(root) == 2000000 * 1024

    def test_a_group_outside_of_what_is_seen(self, root: Path) -> None:
        (root / "proc/self/cgroup").write_text("0::/../../jobs\n")
        _group(root / "sys/fs/cgroup", str(300 * MIB), 100 * MIB)
        assert machine_bytes(root) == 200 * MIB


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Bytes that are free, to be set: of the GPU, the machine and the process."""
    there = dict.fromkeys(("gpu", "machine", "process"), float("inf"))
    monkeypatch.setattr(memory, "gpu_bytes", lambda _: there["gpu"])
    monkeypatch.setattr(memory, "machine_bytes", lambda: there["machine"])
    monkeypatch.setattr(memory, "process_bytes", lambda: there["process"])
    return there


@pytest.fixture
def parameters(stdlib_model: Path) -> int:
    reader = TensorReader(stdlib_model)
    return sum(torch.Size(reader.shape(name)).numel() for name in reader.names)


@pytest.mark.parametrize(
    ("device", "where", "processes", "moving", "has_teacher", "each"),
    [
        (CPU, "machine", 1, 1.0, False, 16),
        (CPU, "machine", 1, 1.0, True, 16 + 4),
        (CPU, "machine", 1, 0.0, False, 4),
        (CPU, "machine", 2, 1.0, False, 16 + 12),  # one of them gathers a checkpoint
        (CPU, "machine", 2, 1.0, True, 16 + 12 + 2 * 4),  # each has a teacher, in one memory
        (CPU, "machine", 8, 0.0, True, 8 * 4 + 8 * 4),  # each loads the whole student first
        (CPU, "process", 2, 1.0, True, 8 + 12 + 4),
        (GPU, "gpu", 1, 1.0, True, 16 + 2),
        (GPU, "gpu", 2, 1.0, True, 8 + 2),
        (GPU, "gpu", 8, 1.0, True, 4 + 2),  # the whole student, not an eighth of all
        (GPU, "machine", 8, 1.0, True, 12),  # the host holds a checkpoint
        (GPU, "process", 1, 1.0, False, 12),
    ],
)
def test_bytes_of_a_parameter(
    device: torch.device,
    where: str,
    processes: int,
    moving: float,
    has_teacher: bool,
    each: int,
    parameters: int,
    free: dict[str, float],
) -> None:
    """So much is enough, and no less."""
    asked = parameters if has_teacher else 0
    held = Footprint(parameters, moving * parameters, 4 * parameters, asked, processes=processes)

    def check() -> None:
        check_footprint(held, device)

    free[where] = parameters * each * ROOM * 1.001
    check()
    free[where] = parameters * each * ROOM * 0.999
    with pytest.raises(OutOfMemory, match="takes about"):
        check()


def test_a_checkpoint_passes_through_the_host(parameters: int, free: dict[str, float]) -> None:
    """Of adapters next to none."""
    free["machine"] = 0.05 * 12 * parameters
    check_footprint(Footprint(parameters, 0.02 * parameters, 4 * parameters), GPU)
    with pytest.raises(OutOfMemory, match="a checkpoint, on its way to the disk, takes about"):
        check_footprint(Footprint(parameters, parameters, 4 * parameters), GPU)


@pytest.mark.parametrize("scope", ["full", "lora"])
def test_the_estimate_counts_what_the_engine_asks_for(scope: str, stdlib_model: Path, free: dict[str, float]) -> None:
    """On a GPU and without one: the same formula, by the tensors that either sees."""
    training = Distill.model_validate({"scope": scope})
    facts = from_folder(stdlib_model)
    held = footprint(training, facts.tensors, facts.parameters)
    for device, where, needed in ((CPU, "machine", held.host(1)), (GPU, "gpu", held.gpu)):
        ranks = Ranks()
        ranks.device = device
        free |= dict.fromkeys(free, float("inf")) | {where: 1.001 * ROOM * needed}
        check_memory(training, stdlib_model, stdlib_model, ranks)
        free[where] = 0.999 * ROOM * needed
        with pytest.raises(OutOfMemory, match="takes about"):
            check_memory(training, stdlib_model, stdlib_model, ranks)


def test_frozen_linears_in_codes(tiny_model: MakeModel) -> None:
    """What stays in float32 beside them, embeddings first of all, is counted at its size: as bytes of torch's."""
    folder = tiny_model("Llama")
    training = Finetune.model_validate({"scope": "lora", "lora": {"base": "nf4"}})
    held = footprint(training, from_folder(folder).tensors)
    student = Student(folder, CPU, hold_in_nf4)
    add_adapters(student, training.lora, 0)
    adapters = sum(one.numel() for one in student.model.parameters() if one.requires_grad)
    assert held.moving == adapters
    codes = sum(one.nbytes for name, one in student.model.named_buffers() if "base_layer" in name)
    plain = sum(one.nbytes for one in student.model.parameters())
    assert held.weights == pytest.approx(codes + plain, rel=0.05)


def test_what_is_said(parameters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Footprint(parameters, parameters, 4 * parameters, teacher=parameters)
    check_footprint(held, CPU)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 50e6)
    with pytest.raises(OutOfMemory, match=r"takes about 0\.1 GiB.*100% of them moving, and a teacher") as caught:
        check_footprint(held, CPU)
    assert "teacher_top_k" in caught.value.remedy
    check_footprint(Footprint(parameters, 0, 4 * parameters), CPU)


PALETTE, HASH = Palettize(bits=2, group=100, sensitivity="none", embeddings=True), HashShare(ratio=0.3)
TIE, ZEROS = TieLayers(runs=((0, 1),)), Sparsify(method="magnitude", ratio=0.5)


@pytest.mark.parametrize("technique", [PALETTE, HASH, TIE, ZEROS], ids=lambda one: one.technique)
def test_what_keeps_a_form_is_counted(
    technique: Technique, tiny_model: MakeModel, tmp_path: Path, free: dict[str, float]
) -> None:
    """So much as constraints hold, and the float64 sums of the largest on top; a stage is refused for want of it."""
    torch.set_num_threads(1)
    source = tiny_model("Llama")
    made = run_of(source, source, tmp_path / "made")
    technique.apply(made)
    student = Student(made.out, CPU)
    student.model.requires_grad_()
    constraints = constraints_of(student, made.out, Ranks())
    tensors = [each for one in constraints for held in vars(one).values() for each in _tensors(held)]
    held = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    shared = [(one._buckets, one._indices[0].numel()) for one in constraints if isinstance(one, Shared)]
    passing = max((8 * max(numbers + 2 * places, 3 * numbers) for numbers, places in shared), default=0)
    assert held_bytes(made.out) == pytest.approx(sum(held.values()) + passing)

    training = Finetune.model_validate({"steps": 1, "batch": 1, "sequence_length": 16, "validation": {"samples": 1}})
    run = training_run(training, made.out, made.out, tmp_path)
    reader = TensorReader(made.out)
    plain_bytes = 16 * sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
    free["machine"] = ROOM * (plain_bytes + 0.99 * held_bytes(made.out))
    with pytest.raises(OutOfMemory, match="to keep zeros or shared numbers"):
        training.apply(run)
    free["machine"] = ROOM * (plain_bytes + 1.01 * held_bytes(made.out))
    training.apply(run)


def test_processes_hold_their_own_places(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Tied layers look one table of places up in one process; two processes hold half of each layer's own."""
    source = tiny_model("Llama")
    made = run_of(source, source, tmp_path / "made")
    TIE.apply(made)
    reader = TensorReader(made.out)
    sizes = [torch.Size(reader.shape(names[0])).numel() for names in load_tied(made.out).tensors]  # type: ignore[union-attr]
    total, most = sum(sizes), max(sizes)
    assert held_bytes(made.out, 1) == 9 * total + 8 * (total + 3 * most)
    assert held_bytes(made.out, 2) == 9 * total + 8 * (total + 3 * most)
    assert held_bytes(made.out, 4) == 9 * total / 2 + 8 * (total + 3 * most)


def _tensors(held: object) -> list[torch.Tensor]:
    """Among what a constraint holds, without the parameters, which are counted already."""
    if isinstance(held, list):
        return [one for each in held for one in _tensors(each)]
    return [held] if isinstance(held, torch.Tensor) and not isinstance(held, torch.nn.Parameter) else []
