"""A dense checkpoint written as a mixture of experts, one tensor after the other.

Legend: E experts, H hidden size, N and K a matrix's outputs and inputs, F the inner channels.
"""

import json
import re
from typing import TYPE_CHECKING

import torch

from optcore.errors import RecipeError
from optcore.links import link_companions
from optcore.restructure.families import Family, family_for
from optcore.restructure.probe import check_same, probe_logits
from optcore.restructure.routing import forbidding
from optcore.seeds import seed_of
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder
from optcore.streaming.reader import TensorReader
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.upcycle import Upcycle

_FFN = re.compile(r"(?P<layer>(?:.+\.)?layers\.\d+\.)mlp\.(?P<projection>gate_proj|up_proj|down_proj)\.weight")


def upcycle(run: "Run", technique: "Upcycle") -> None:
    """Write `run.checkpoint` as a mixture of experts to `run.out`. Raises `RecipeError` for families without one."""
    from transformers import AutoConfig

    whole = AutoConfig.from_pretrained(run.checkpoint, trust_remote_code=False).to_dict()
    family = family_for(whole)
    reader = TensorReader(run.checkpoint)
    written = _Copies(run, technique, family, float(whole.get("initializer_range") or 0.02)).write(reader)
    link_companions(run.checkpoint, run.out)
    own = json.loads((run.checkpoint / CONFIG).read_text())  # may spell what engines know and `whole` does not
    config = whole | own | family.settings(technique, int(whole["intermediate_size"]))
    (run.out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    _check(run, technique)
    before = sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
    run.results["upcycle"] = {"family": family.model_type, "parameters_before": before, "parameters": written}
    run.notice(
        f"{written / before:.2f} times the parameters, and no better than the dense model until trained: each token "
        f"passes through {technique.top_k + family.shares} feed-forward networks instead of one"
    )


class _Copies:
    """Writes each feed-forward network's matrices as often as there are experts."""

    def __init__(self, run: "Run", technique: "Upcycle", family: Family, router_std: float) -> None:
        self._run, self._technique, self._family = run, technique, family
        self._router_std = router_std
        self._writer = TensorWriter(run.out)
        self._parameters = 0

    def write(self, reader: TensorReader) -> int:
        """Returns how many parameters there are afterwards."""
        found = {name: match for name in reader.names if (match := _FFN.fullmatch(name))}
        if not found:
            raise RecipeError(
                "the checkpoint has no feed-forward network under the names that its family gives them",
                remedy="use a checkpoint as transformers writes it",
                field="/chain",
            )
        for done, name in enumerate(reader.names, 1):
            if match := found.get(name):
                self._expert_tensors(match["layer"], match["projection"], reader.tensor(name))
            else:
                self._add(name, reader.tensor(name))
            self._run.progress("searching", done, len(reader.names))
        self._writer.close()
        return self._parameters

    def _expert_tensors(self, layer: str, projection: str, weight_NK: torch.Tensor) -> None:
        """One matrix of all experts, and what decides about them beside the first of the three."""
        folder = f"{layer}{self._family.block}."
        for number in range(self._technique.experts):
            name = f"{folder}experts.{number}.{self._family.projections[projection]}.weight"
            self._add(name, self._copy(layer, number, projection, weight_NK))
        if self._family.shares:
            self._add(f"{folder}shared_expert.{projection}.weight", weight_NK)
        if projection == "gate_proj":
            hidden, dtype = weight_NK.shape[1], weight_NK.dtype
            drawn_EH = torch.randn(self._technique.experts, hidden, generator=self._generator(layer, "router"))
            self._add(f"{folder}gate.weight", (drawn_EH * self._router_std).to(dtype))
            if self._family.shares:
                self._add(f"{folder}shared_expert_gate.weight", torch.zeros(1, hidden, dtype=dtype))

    def _copy(self, layer: str, number: int, projection: str, weight_NK: torch.Tensor) -> torch.Tensor:
        """The matrix of one expert; halved at its end where a shared one gives the other half (exact in binary)."""
        copy_NK = weight_NK.float()
        if number and not self._technique.is_exact:
            copy_NK = self._parted(layer, number, projection, copy_NK)
        if self._family.shares and projection == "down_proj":
            copy_NK = copy_NK / 2
        return copy_NK.to(weight_NK.dtype, copy=True)

    def _parted(self, layer: str, number: int, projection: str, weight_NK: torch.Tensor) -> torch.Tensor:
        generator = self._generator(layer, number, projection)
        std, mean = weight_NK.std(), weight_NK.mean()
        parted_NK = weight_NK + self._technique.jitter * std * torch.randn(weight_NK.shape, generator=generator)
        inner = weight_NK.shape[1 if projection == "down_proj" else 0]
        chosen_F = torch.randperm(inner, generator=self._generator(layer, number))  # the same of all three matrices
        chosen_F = chosen_F[: round(self._technique.reinitialize * inner)]
        drawn_NK = mean + std * torch.randn(weight_NK.shape, generator=generator)
        if projection == "down_proj":
            parted_NK[:, chosen_F] = drawn_NK[:, chosen_F]
        else:
            parted_NK[chosen_F] = drawn_NK[chosen_F]
        return parted_NK

    def _generator(self, *what: object) -> torch.Generator:
        """By name: the same in whatever order and files tensors lie."""
        return torch.Generator().manual_seed(seed_of(self._run.seed, *map(str, what)))

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        self._parameters += tensor.numel()
        self._writer.add(name, tensor)


def _check(run: "Run", technique: "Upcycle") -> None:
    """Where copies differ, the model that is only ever given to the first must be the dense one."""
    dense, mixture = (Decoder(folder, dtype=torch.float32) for folder in (run.checkpoint, run.out))
    others = () if technique.is_exact else range(1, technique.experts)
    check_same(
        probe_logits(mixture, around=forbidding(dict.fromkeys(range(len(mixture)), others))),
        probe_logits(dense),
        f"as a {type(mixture.model).__name__} the model computes something else: its configuration holds what that "
        "family does not know",
        "upcycle another model of these families",
    )
