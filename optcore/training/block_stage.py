"""QAT and QAD one decoder layer at a time: bounded memory, whatever the model's depth.

The dense model's hidden states of all windows go through the dense layers, and beside them the states that the layers
are trained on (`propagate`). A layer in memory is trained to give what the dense one gives (as in EfficientQAT's first
phase, arXiv:2407.11062), its codes are written, and the states go on through what was written: so a run that is killed
and goes on behind the last finished layer gives the same bytes.
"""

import gc
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from optcore.calibration.journal import Journal
from optcore.durable import write_settled
from optcore.quantization import Quantization, QuantizedLayer
from optcore.streaming.cache import RoundingCache
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.simulate import changed_parameters, module_paths, rounded, rounded_linear
from optcore.training.block_forward import BlockForward
from optcore.training.block_loop import BlockLoop, BlockOutcome
from optcore.training.block_report import keep_or_restore, measured_once, note_blocks
from optcore.training.fake_quant import as_stored
from optcore.training.quantized_stage import choose, policy_of
from optcore.training.quantized_writer import describe_trained, rewritten
from optcore.training.student import TrainingCache, plain_parameters, simulate_layer
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.quantization_aware import QuantizationAware


def train_blocks(run: "Run", technique: "QuantizationAware") -> None:
    """Train the layers of `run.checkpoint` one after the other and write their codes to `run.out`."""
    windows = Windows(run.windows)
    start = measured_once(run, run.checkpoint, windows, "start")
    blocks: list[BlockOutcome] = []
    if start["kl"] < technique.skip_below:
        said = f"KL to the dense model is {start['kl']:.2g} nats a token, less than {technique.skip_below:g}"
        run.notice(f"nothing was trained: {said}")
    else:
        blocks = _BlockPass(run, technique, windows).walk()
    end = keep_or_restore(run, windows, start, trained=bool(blocks))
    note_blocks(run, technique, blocks, (start, end), windows.facts)


class _BlockPass:
    """Walks through the layers once."""

    def __init__(self, run: "Run", technique: "QuantizationAware", windows: Windows) -> None:
        self.run = run
        self.technique = technique
        self.facts = windows.facts
        self.decoder = Decoder(run.checkpoint)
        self.quantized = QuantizedCheckpoint(run.checkpoint)
        self.journal = Journal(run.out, run.records)
        tokens_ST = windows.read(range(windows.facts.windows)).tokens_BT
        self._dense = HiddenStates(self.decoder, tokens_ST, run.scratch)
        self._given = HiddenStates(self.decoder, tokens_ST, run.scratch)
        self._probe = probe_state(self.decoder)

    @property
    def description(self) -> Quantization:
        """Of the checkpoint that we start from."""
        return self.quantized.description

    def walk(self) -> list[BlockOutcome]:
        """Train every layer that no earlier process finished; how it went with each."""
        for index in range(len(self.decoder)):
            with self.decoder.layer(index) as layer:
                with torch.no_grad():
                    self._dense.advance(index, layer)
                if self.journal.layer(index) is None:
                    self._train(index, layer)
                    gc.collect()  # simulated linears know themselves and each other
                self._go_past(index, layer)
            self.run.progress("training", index + 1, len(self.decoder))
        layers = [self._record(index) for index in range(len(self.decoder))]
        describe_trained(self.run, self.description, layers, policy_of(self.technique, self.description))
        return [self._outcome(index) for index in range(len(self.decoder))]

    def _train(self, index: int, layer: nn.Module) -> None:
        with torch.no_grad():
            groups = fused_groups(self.decoder, index, layer, self._probe)
        student = deepcopy(layer).float().requires_grad_(False)
        policy = policy_of(self.technique, self.description)
        linears = simulate_layer(self.decoder, index, student, self.quantized, policy, groups)
        choose(linears.values(), student, self.technique)
        forward = BlockForward(
            self.decoder, index, student, self._cache(index, TrainingCache), self.technique.precision
        )
        errors = partial(forward.errors, self._given, self._dense)
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        loop = BlockLoop(self.technique, trained, errors, self.facts, self.run.seed)
        with as_stored(linears.values()):
            start = loop.validated()
        outcome = loop.train(start)
        self._say(index, outcome)
        record = self.description.layers[index]
        tensors = load_file(self.run.checkpoint / record.file)
        if outcome.best:
            with torch.no_grad():
                plain = plain_parameters(self.decoder, index, student, linears)
                record = rewritten(linears, plain, record, tensors)
        write_settled(self._outcome_path(index), outcome.model_dump_json())
        self.journal.write(index, tensors, record, {})  # inputs are measured before training alone

    @torch.no_grad()
    def _go_past(self, index: int, layer: nn.Module) -> None:
        """Bring the states that layers are trained on past one, in the form that was written."""
        if self.technique.propagate == "original":
            self._given.hidden_STH.copy_(self._dense.hidden_STH)
            return
        record = self._record(index)
        written = QuantizedCheckpoint(self.run.out, Quantization(layers=(record,), ignored=()))
        search = self.description.activation_search
        paths = module_paths(self.decoder, index, layer)
        chosen = {
            path: rounded_linear(written, name, search=search) for path, name in paths.items() if name in record.linears
        }
        with rounded(layer, chosen, changed_parameters(written, self.decoder, index, record)):
            self._given.advance(index, layer, self._cache(index, RoundingCache))

    def _cache(self, index: int, kind: type[RoundingCache]) -> RoundingCache | None:
        args, attention = self.description.kv_preset, self.description.layers[index].attention
        if args is None or not attention:
            return None
        return kind(args, self.quantized.kv_tensors(attention), rotate=self.description.kv_rotate)

    def _say(self, index: int, outcome: BlockOutcome) -> None:
        self.run.metric("block_error_before", outcome.start, index)
        self.run.metric("block_error", outcome.end, index)
        if outcome.is_diverged:
            name, step = self.decoder.layer_name(index), len(outcome.losses) + 1
            self.run.notice(f"{name}: the loss is no number any more at step {step}; step {outcome.best} was kept")

    def _record(self, index: int) -> QuantizedLayer:
        record = self.journal.layer(index)
        assert record
        return record

    def _outcome(self, index: int) -> BlockOutcome:
        return BlockOutcome.model_validate_json(self._outcome_path(index).read_text())

    def _outcome_path(self, index: int) -> Path:
        return self.run.records / f"block-{index:05d}.json"
