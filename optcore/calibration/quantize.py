"""Post-training quantization in one pass over the decoder layers: measure inputs, quantize, write, go on."""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optcore.calibration.assignment import Assignment, all_experts, check_groups
from optcore.calibration.devices import computing_devices
from optcore.calibration.journal import Journal
from optcore.calibration.kv import attention_name, attention_path, check_kv_cache, named, no_cache
from optcore.calibration.layer import LayerQuantizer, Quantized
from optcore.calibration.memory import check_memory, ran_out
from optcore.calibration.propagate import Propagation, calibrated
from optcore.calibration.reconstruction import tell_layer
from optcore.calibration.tables import Table, round_tables, tables_of
from optcore.errors import OutOfDisk, RecipeError
from optcore.links import link_checkpoint
from optcore.mixes import anatomy
from optcore.out_of_memory import is_out_of_memory
from optcore.quantization import Quantization, QuantizedLayer, also_folder, layer_file, quantized_files
from optcore.schemes import KV_CACHE_PRESETS
from optcore.sizes import weight_bytes
from optcore.streaming.cache import ObservingCache
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.simulate import changed_parameters, module_paths, rounded, rounded_linear
from optcore.streaming.structure import Fold, folds
from optcore.streaming.zeros import carry_zeros_to_codes

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.ptq import Ptq


@torch.no_grad()
def quantize_checkpoint(
    run: "Run",
    technique: "Ptq",
    chosen: Mapping[str, str | None] | None = None,
    devices: Sequence[torch.device] | None = None,
) -> None:
    """Write the quantized checkpoint of `run.checkpoint` to `run.out`, and one more below it for each of `also`.

    `chosen` gives single modules another format than the technique's scheme (None: leave it alone). `devices` are what
    weights are rounded on, the first of them that of the layers; all GPUs that the process sees, where it is left out.
    """
    decoder = Decoder(run.checkpoint, devices[0] if devices else None)
    _Pass(run, technique, decoder, chosen, devices or computing_devices(decoder.device)).walk()


class _Variant:
    """One format of the pass: which modules get it, and where its checkpoint goes."""

    def __init__(self, assignment: Assignment, out: Path, records: Path) -> None:
        self.assignment = assignment
        self.out = out
        self.journal = Journal(out, records)


class _Pass:
    """Walks through the layers once, whatever the number of formats."""

    def __init__(
        self,
        run: "Run",
        technique: "Ptq",
        decoder: Decoder,
        chosen: Mapping[str, str | None] | None,
        devices: Sequence[torch.device],
    ) -> None:
        self.run = run
        self.technique = technique
        self.decoder = decoder
        self._devices = devices
        records = run.records
        self.variants = [_Variant(Assignment(technique.scheme, technique, chosen), run.out, records / technique.scheme)]
        for scheme in technique.also:
            folder = also_folder(run.out, scheme)
            self.variants.append(_Variant(Assignment(scheme, technique, chosen), folder, records / scheme))
        self._probe = probe_state(decoder)
        self._kinds_checked: set[frozenset[str]] = set()
        self._known_folds: dict[frozenset[Any], list[Fold]] = {}

    def walk(self) -> None:
        """Check, go through the layers, write what is outside them, describe the result."""
        self._check()
        states = calibrated(self.run, self.decoder, self.technique) if self._needs_text() else None
        for index in range(len(self.decoder)):
            try:
                self._pass(index, states)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise ran_out(self.decoder, index, gram=self.technique.measures_gram) from error
                raise
            self.run.progress("calibrating" if states else "searching", index + 1, len(self.decoder))
        self._finish(states)

    def _pass(self, index: int, states: Propagation | None) -> None:
        with self.decoder.layer(index, keep_stored=True) as layer:
            if self._is_finished(index):
                self._skip(index, layer, states)
            else:
                self._quantize(index, layer, states)

    def _check(self) -> None:
        if self.technique.kv_cache:
            check_kv_cache(self.decoder)
        inputs = {
            name: layer.get_submodule(path).in_features
            for index, layer in enumerate(self.decoder.layers)
            for path, name in self._paths(index).items()
        }
        model = anatomy(self.decoder.model.config.to_dict(), len(self.decoder))
        for variant in self.variants:
            variant.assignment.place(inputs, model)
            variant.assignment.check([], list(inputs))
            self._notice_fallbacks(variant.assignment)
            schemes = {name: scheme for name in inputs if (scheme := variant.assignment[name])}
            if not schemes and self.technique.kv_cache is None:
                raise RecipeError(
                    "no linear layer is left to quantize",
                    remedy="let `ignore`, `overrides` or the bits asked for leave at least one",
                    field="/chain",
                )
            for name, scheme in schemes.items():
                check_groups(name, inputs[name], scheme)
        check_memory(self.decoder, gram=self.technique.measures_gram)
        _check_disk(self.run, [variant.out for variant in self.variants])

    def _notice_fallbacks(self, assignment: Assignment) -> None:
        for (wanted, found), count in Counter(assignment.fallen_back.values()).items():
            became = f"{found}, not {wanted}" if found else f"left in high precision, not {wanted}"
            self.run.notice(f"{count} linear layers are {became}: blocks of that format do not divide their inputs")

    def _needs_text(self) -> bool:
        names = [name for index in range(len(self.decoder)) for name in self._paths(index).values()]
        schemes = (variant.assignment[name] for variant in self.variants for name in names)
        static = any(scheme.needs_calibration for scheme in schemes if scheme)
        technique = self.technique
        return static or technique.measures_gram or technique.kv_cache is not None

    def _paths(self, index: int) -> dict[str, str]:
        return module_paths(self.decoder, index, self.decoder.layers[index])

    def _is_finished(self, index: int) -> bool:
        return all(variant.journal.layer(index) is not None for variant in self.variants)

    def _skip(self, index: int, layer: nn.Module, states: Propagation | None) -> None:
        """Bring the hidden states past a layer that an earlier process finished."""
        if states is None:
            return
        self._folds(index, layer)  # what later layers of these modules were asked about by the earlier process
        variant = self.variants[0]
        record = variant.journal.layer(index)
        assert record is not None
        checkpoint = QuantizedCheckpoint(variant.out, Quantization(layers=(record,), ignored=()))
        names = {name: path for path, name in self._paths(index).items()}
        chosen = {
            names[name]: rounded_linear(checkpoint, name, search=self.technique.activation_search)
            for name in record.linears
        }
        changed = changed_parameters(checkpoint, self.decoder, index, record)
        states.skip(index, layer, lambda: rounded(layer, chosen, changed))

    def _quantize(self, index: int, layer: nn.Module, states: Propagation | None) -> None:
        paths = module_paths(self.decoder, index, layer)
        groups = fused_groups(self.decoder, index, layer, self._probe)
        self._check_fused(index, paths, groups)
        cache = ObservingCache(rotate=self.technique.kv_rotate) if self.technique.kv_cache else None
        gram = self.technique.measures_gram
        levels = self._levels(groups)
        statistics = states.measure(index, layer, groups, levels[0], gram=gram, cache=cache) if states else {}
        keys_and_values = self._kv_tensors(index, layer, cache)
        smooth = self._folds(index, layer)
        for variant in self.variants:
            with _put_back(layer, needed=bool(smooth)):
                dtype = self.decoder.stored_dtype
                quantizer = LayerQuantizer(layer, paths, self.technique, dtype, variant.assignment, self._devices)
                smoothed = quantizer.smooth(smooth, statistics)
                for number, level in enumerate(levels):
                    if number and states:
                        smoothed = states.measure_again(index, layer, level, quantizer.applied)
                    quantizer.quantize(level, smoothed)
                self._write(variant, index, layer, quantizer.done, keys_and_values)
                if variant is self.variants[0]:
                    tell_layer(self.run, index, quantizer.lost_shares())
                    if states:
                        states.advance(index, layer, quantizer.applied)
        if states:
            states.advance_original(index, layer)

    def _check_fused(self, index: int, paths: dict[str, str], groups: list[list[str]]) -> None:
        """Refuse formats that split what engines fuse, in this layer and every later one that has the same modules.

        Groups are only known once a layer is in memory; a recipe's mistake in the last one is found at the first.
        """
        kind = frozenset(paths)
        if kind in self._kinds_checked:
            return
        self._kinds_checked.add(kind)
        alike = (own for later in range(index, len(self.decoder)) if (own := self._paths(later)).keys() == kind)
        fused = [[own[path] for path in group] for own in alike for group in groups]
        for variant in self.variants:
            variant.assignment.check(fused, [])

    def _folds(self, index: int, layer: nn.Module) -> list[Fold]:
        """What may be rescaled. Values that were measured for a quantized cache must stay as they are."""
        if self.technique.smoothing == "none":
            return []
        found = self._all_folds(index, layer)
        attention = attention_path(layer) if self.technique.kv_cache else None
        return [fold for fold in found if attention is None or not fold.producer.startswith(f"{attention}.")]

    def _all_folds(self, index: int, layer: nn.Module) -> list[Fold]:
        kind = frozenset((path, layer.get_submodule(path).weight.shape) for path in self._paths(index))
        found = folds(self.decoder, index, layer, self._probe, self._known_folds.get(kind))
        return self._known_folds.setdefault(kind, found)

    def _levels(self, groups: list[list[str]]) -> list[list[list[str]]]:
        """Groups that are quantized together: all of a layer, or with an asymmetric target one after the other.

        All experts' first projections are one level, and their second ones the next.
        """
        if not self.technique.feedback.asymmetry:
            return [groups]
        levels: dict[str, list[list[str]]] = {}
        for group in groups:
            levels.setdefault(all_experts(group[0]), []).append(group)
        return list(levels.values())

    def _kv_tensors(self, index: int, layer: nn.Module, cache: ObservingCache | None) -> dict[str, torch.Tensor]:
        if cache is None or self.technique.kv_cache is None or not self.decoder.has_key_value_cache(index):
            return {}
        if not cache.was_used:
            raise no_cache(index)
        args = KV_CACHE_PRESETS[self.technique.kv_cache]
        return named(attention_name(self.decoder, index, layer), cache.tensors(args, self.decoder.stored_dtype))

    def _write(
        self, variant: _Variant, index: int, layer: nn.Module, done: Quantized, keys_and_values: dict[str, torch.Tensor]
    ) -> None:
        """Everything that the layer has in the quantized model, under the checkpoint's names."""
        tensors = self.decoder.stored_tensors(index, list(done.linears))
        changed = self._take_changed(tensors, index, layer, done.changed)
        has_cache = self.technique.kv_cache and self.decoder.has_key_value_cache(index)
        attention = attention_name(self.decoder, index, layer) if has_cache else ""
        record = QuantizedLayer(file=layer_file(index), linears=done.linears, changed=changed, attention=attention)
        variant.journal.write(index, tensors | done.tensors | keys_and_values, record, done.importance)

    def _take_changed(
        self, tensors: dict[str, torch.Tensor], index: int, layer: nn.Module, paths: Iterable[str]
    ) -> tuple[str, ...]:
        """Put parameters that took a scale in the place of the stored ones; returns the names of the tensors."""
        names, changed = self.decoder.names, dict[str, None]()
        for path in sorted(paths):
            parameter, source = (
                layer.get_parameter(path).data,
                names.sources[f"{self.decoder.layer_name(index)}.{path}"],
            )
            own = names.stored_name[f"{self.decoder.layer_name(index)}.{path}"]
            if own in tensors:
                tensors[own] = parameter.to(tensors[own].dtype)
            else:  # an expert in a tensor that holds all of them
                whole = tensors[source.stored]
                own, tensors[source.stored] = source.stored, whole if source.stored in changed else whole.clone()
                source.of(tensors[own]).copy_(parameter)
            changed[own] = None
        return tuple(changed)

    def _finish(self, states: Propagation | None) -> None:
        outside = dict(self.decoder.outside_tensors())
        for variant in self.variants:
            tables = tables_of(self.decoder, self.technique, variant.assignment.scheme)
            head = next((table.name for table in tables if table.is_head), None)
            measured = states.before_head() if states and head and self.decoder.is_causal else None
            done = round_tables(tables, outside, self.technique, self.decoder, measured)
            replaced = {name for table in tables for name in table.stored}
            kept = {name: tensor for name, tensor in outside.items() if name not in replaced}
            variant.journal.write_outside(kept | done.tensors)
            variant.journal.write_importance(len(self.decoder), {head: measured} if head and measured else {})
            link_checkpoint(self.run.checkpoint, variant.out)
            layers = [variant.journal.layer(index) for index in range(len(self.decoder))]
            description = Quantization(
                layers=tuple(layer for layer in layers if layer),
                ignored=self._left_alone(layers, tables),
                tables=done.described,
                kv_cache=self.technique.kv_cache,
                kv_rotate=self.technique.kv_rotate,
                activation_search=self.technique.activation_search,
                searched=self.technique.is_searched,
            )
            description.save(variant.out)
            carry_zeros_to_codes(self.run, self.decoder, variant.out)
        self.run.results["bytes_read"] = self.decoder.reader.bytes_read
        self.run.results["bytes_written"] = sum(variant.journal.bytes_written for variant in self.variants)

    def _left_alone(self, layers: list[QuantizedLayer | None], tables: Sequence[Table]) -> tuple[str, ...]:
        """Every matrix that was not quantized, routers and the head included: engines take some of them for linears."""
        quantized = {name for layer in layers if layer for name in layer.linears}
        quantized |= {name.removesuffix(".weight") for table in tables for name in table.stored}
        reader, known = self.decoder.reader, {*quantized, *self.decoder.embeddings}
        matrices = (name for name in reader.names if name.endswith(".weight") and len(reader.shape(name)) == 2)
        linears = (name for index in range(len(self.decoder)) for name in self._paths(index).values())
        found = dict.fromkeys([*(name.removesuffix(".weight") for name in matrices), *linears])  # experts of one tensor
        left = [name for name in found if name not in known]
        own = self.decoder.names.own_modules
        renamed = [own[name] for name in left if own.get(name, name) != name]  # engines may look for either
        tied = () if any(table.is_head for table in tables) else self.decoder.tied_linears
        return (*left, *renamed, *(name for name in tied if name not in found))


@contextmanager
def _put_back(layer: nn.Module, *, needed: bool) -> Iterator[None]:
    """Undo what smoothing does to the layer's parameters."""
    kept = {name: parameter.data.clone() for name, parameter in layer.named_parameters()} if needed else {}
    try:
        yield
    finally:
        for name, tensor in kept.items():
            layer.get_parameter(name).data = tensor


def _check_disk(run: "Run", folders: Sequence[Path]) -> None:
    """A result is at most as large as what it is made of; one that does not fit is refused before hours are spent.

    What an earlier process wrote has its place already.
    """
    written = sum(path.stat().st_size for folder in folders for path in quantized_files(folder))
    needed = len(folders) * weight_bytes(run.checkpoint) - written
    free = shutil.disk_usage(run.out).free
    if free < needed:
        raise OutOfDisk(
            f"{needed / 2**20:.0f} MiB may be needed for the result, {free / 2**20:.0f} MiB are free",
            remedy="free space in the work folder, or point it at a larger disk",
        )
