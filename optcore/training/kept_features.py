"""A target looked at once: what a draft reads of it at every token of every training window, on disk.

A folder with `features.json` and shards of windows `features-00000.bin`: plain little-endian arrays
[W, taps + 1, T, H] of bfloat16 or float32, the outputs of the tapped layers in the order of the taps and behind them
the last hidden states, which the target's head makes logits of. A window is one piece of its file.

Shapes: W windows of a shard, B windows of a batch, T tokens, H hidden size of the target.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, ValidationError

from optcore.durable import settle, write_settled
from optcore.errors import BadCheckpoint, OutOfDisk, RecipeError, folder_error
from optcore.frozen import Frozen
from optcore.quantization import load_quantization
from optcore.speculative.target import Features
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.hidden import IN_MEMORY_bytes
from optcore.streaming.simulate import Simulation
from optcore.training.batches import micro_batches, micro_size
from optcore.training.plain_arrays import bytes_of, read_at, write_at
from optcore.training.trainee import inputs_of
from optcore.training.windows import Batch, Windows

if TYPE_CHECKING:
    from optcore.run import Run

FACTS = "features.json"
FeatureType = Literal["bfloat16", "float32"]
_FACTS_bytes = 1024
_GIB = 2**30


class FeatureFacts(Frozen):
    """What a folder of features holds: the content of `features.json`."""

    version: Literal[1] = 1
    """Version of the files' form."""
    windows: int = Field(ge=1)
    length: int = Field(ge=1)
    """T: tokens of a window."""
    width: int = Field(ge=1)
    """H."""
    taps: tuple[int, ...]
    """Numbers of the layers, from 0, whose outputs are kept."""
    dtype: FeatureType
    shard_windows: int = Field(ge=1)
    """W: windows of every shard but the last one."""

    @property
    def type(self) -> torch.dtype:
        """In which features are stored."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def window_bytes(self) -> int:
        """One window on disk."""
        return self.length * self.width * (len(self.taps) + 1) * self.type.itemsize

    @property
    def shards(self) -> list[range]:
        """Numbers of each shard's windows."""
        starts = range(0, self.windows, self.shard_windows)
        return [range(start, min(start + self.shard_windows, self.windows)) for start in starts]


def estimate_bytes(windows: int, length: int, width: int, taps: int, dtype: FeatureType) -> int:
    """What features of so many windows take on disk: `taps` layers and the last hidden states, and the index."""
    return windows * length * width * (taps + 1) * getattr(torch, dtype).itemsize + _FACTS_bytes


def keep_features(run: "Run", taps: Sequence[int], dtype: FeatureType, shard_windows: int | None = None) -> None:
    """Write what `run.checkpoint`, quantized as it is, computes of `run.windows` into `run.out`.

    The target goes through its layers one at a time, once for each shard; shards that a killed process finished stay.
    As many windows make a shard as have hidden states of 2 GiB. Raises `OutOfDisk` before anything is computed.
    """
    windows, decoder = Windows(run.windows), Decoder(run.checkpoint)
    _check_taps(run, taps, len(decoder))
    length, width = windows.facts.length, int(decoder.model.config.get_text_config().hidden_size)
    facts = FeatureFacts(
        windows=windows.facts.windows,
        length=length,
        width=width,
        taps=tuple(taps),
        dtype=dtype,
        shard_windows=shard_windows or max(1, IN_MEMORY_bytes // (length * width * decoder.dtype.itemsize)),
    )
    _check_room(run, facts)
    write_settled(run.records / FACTS, facts.model_dump_json())  # or a killed process's files are removed
    simulation = Simulation(run.checkpoint) if load_quantization(run.checkpoint) else None
    walk = _Walk(run, decoder, simulation, windows, facts)
    try:
        for number in range(len(facts.shards)):
            walk.write(number)
        write_settled(run.out / FACTS, facts.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise folder_error(error) from error
    run.results["features"] = {"bytes_per_token": facts.window_bytes // length, "taps": list(taps), "dtype": dtype}


class KeptFeatures:
    """Reads features of windows by number; a source of features as `optcore.training.draft_features` wants one."""

    def __init__(self, folder: Path, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """`dtype` is what the target computes in; None: as stored.

        Raises `BadCheckpoint` where the folder holds no features, or a part of them.
        """
        try:
            self.facts = FeatureFacts.model_validate_json((folder / FACTS).read_text())
            sizes = [_shard(folder, number).stat().st_size for number in range(len(self.facts.shards))]
        except (OSError, ValidationError) as error:
            raise _damaged(folder, str(error)) from error
        if sizes != [len(shard) * self.facts.window_bytes for shard in self.facts.shards]:
            raise _damaged(folder, f"the shards are not as long as {FACTS} says")
        self.folder = folder
        self._device, self._dtype = device or torch.device("cpu"), dtype or self.facts.type

    def features(self, batch: Batch, windows: list[int]) -> Features:
        """What the target computed of the windows with these numbers, which are those of the batch."""
        facts = self.facts
        values = torch.empty((len(windows), len(facts.taps) + 1, facts.length, facts.width), dtype=facts.type)
        into, size = bytes_of(values), facts.window_bytes
        for place, window in enumerate(windows):
            number, row = divmod(window, facts.shard_windows)
            try:
                with _shard(self.folder, number).open("rb", buffering=0) as file:
                    read_at(file.fileno(), row * size, into[place * size : (place + 1) * size])
            except OSError as error:
                raise _damaged(self.folder, str(error)) from error
        *tapped, hidden_BTH = values.to(self._device, self._dtype).unbind(1)
        return Features(hidden_BTH, tuple(tapped))


class _Walk:
    """A target on its way through its layers, with the windows of one shard at a time."""

    def __init__(
        self, run: "Run", decoder: Decoder, simulation: Simulation | None, windows: Windows, facts: FeatureFacts
    ) -> None:
        self._run, self._decoder, self._simulation = run, decoder, simulation
        self._windows, self._facts = windows, facts

    @torch.no_grad()
    def write(self, number: int) -> None:
        """One shard, unless it is there."""
        path, shard = _shard(self._run.out, number), self._facts.shards[number]
        if not path.exists():
            part = path.with_suffix(".part")
            with part.open("wb", buffering=0) as file:
                for slot, place, hidden_BTH in self._computed(shard, number):
                    self._put(file.fileno(), slot, place, hidden_BTH)
            settle(part, path)
        self._run.progress("evaluating", (number + 1) * len(self._decoder), self._steps)

    @property
    def _steps(self) -> int:
        return len(self._facts.shards) * len(self._decoder)

    def _computed(self, shard: range, number: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Slots, places in the shard from which on their windows lie, and features [B, T, H]."""
        decoder, taps = self._decoder, self._facts.taps
        parts = list(micro_batches(list(shard), micro_size(None, self._facts.length)))
        places = [part[0] - shard.start for part in parts]
        states = [self._embedded(part)._replace(arguments=()) for part in parts]
        for index in range(len(decoder)):
            cache = self._simulation.cache(index) if self._simulation else None
            with decoder.layer(index) as layer, self._rounded(index, layer):
                for at, part in enumerate(parts):  # masks of all batches at once would take more than their states
                    state = states[at]._replace(arguments=self._embedded(part).arguments)
                    states[at] = decoder.forward(index, layer, state, cache)._replace(arguments=())
                    for slot in [slot for slot, tap in enumerate(taps) if tap == index]:
                        yield slot, places[at], states[at].hidden_BTH
            if index + 1 < len(decoder):
                self._run.progress("evaluating", number * len(decoder) + index + 1, self._steps)
        for place, state in zip(places, states, strict=True):
            yield len(taps), place, decoder.before_head(state.hidden_BTH)

    def _embedded(self, part: list[int]) -> State:
        inputs = inputs_of(self._windows.read(part).to(self._decoder.device))
        with self._simulation.around(self._decoder) if self._simulation else nullcontext():
            return self._decoder.embed(inputs.pop("input_ids"), **inputs)

    def _rounded(self, index: int, layer: torch.nn.Module) -> AbstractContextManager[None]:
        if self._simulation is None:
            return nullcontext()
        return self._simulation.applied(self._decoder, index, layer)

    def _put(self, file: int, slot: int, place: int, hidden_BTH: torch.Tensor) -> None:
        if not hidden_BTH.isfinite().all():
            raise BadCheckpoint("the target's hidden states are not finite", field="/model")
        size = self._facts.window_bytes
        for row, hidden_TH in enumerate(hidden_BTH.to(self._facts.type), place):
            write_at(file, row * size + slot * (size // (len(self._facts.taps) + 1)), hidden_TH)


def _check_taps(run: "Run", taps: Sequence[int], layers: int) -> None:
    if taps and max(taps) >= layers:
        raise RecipeError(
            f"layer {max(taps)} is to be read, and the target has {layers}",
            remedy=f"name layers from 0 to {layers - 1}, or leave `taps` out",
            field=f"{run.place}/taps",
        )


def _check_room(run: "Run", facts: FeatureFacts) -> None:
    """Say what the features take, and see whether it is free; shards that are there need no more."""
    needed = estimate_bytes(facts.windows, facts.length, facts.width, len(facts.taps), facts.dtype)
    run.out.mkdir(parents=True, exist_ok=True)
    there = sum(_shard(run.out, n).stat().st_size for n in range(len(facts.shards)) if _shard(run.out, n).exists())
    free, tokens = shutil.disk_usage(run.out).free, facts.windows * facts.length
    run.notice(f"features of {tokens} tokens take {needed / _GIB:.2f} GiB on disk, {free / _GIB:.1f} are free")
    if needed - there > free:
        raise OutOfDisk(
            f"the features take {(needed - there) / _GIB:.2f} GiB, {free / _GIB:.2f} are free in the work folder",
            remedy="free space, name another folder with --work, use fewer windows or fewer `taps`, "
            "or `features: online`",
            field=f"{run.place}/features",
        )


def _shard(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.bin"


def _damaged(folder: Path, why: str) -> BadCheckpoint:
    return BadCheckpoint(f"cannot read the features in {folder.name}: {why}", remedy="delete the folder and run again")
