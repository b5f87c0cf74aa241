"""What a decode step of a shape takes on this machine: transformers builds it, its weights drawn at random."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optcore.errors import OutOfMemory
from optcore.host_memory import machine_bytes
from optcore.restructure.depth import may_go
from optcore.restructure.stack import relist
from optcore.restructure.width_plan import planned
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.free_memory import gpu_bytes

if TYPE_CHECKING:
    from optcore.restructure.shapes import Shape
    from optcore.streaming.decoder import Decoder
    from optcore.techniques.prune import Prune

_PROMPT_tokens = 16
_WARM_steps, _TIMED_steps = 3, 15


class Stopwatch:
    """Milliseconds of a decode step with a KV cache, one sequence; each shape is timed once."""

    def __init__(self, decoder: "Decoder", technique: "Prune", scratch: Path) -> None:
        """Raises `OutOfMemory` where the whole model does not fit into memory at once."""
        self._decoder, self._technique, self._scratch = decoder, technique, scratch
        self._known: dict[Shape, float] = {}
        free = gpu_bytes(decoder.device) if decoder.device.type == "cuda" else machine_bytes()
        if decoder.reader.total_bytes > free:
            raise OutOfMemory(
                "a latency is measured with the whole model in memory, and it does not fit",
                remedy="name `params` or `bytes` as the target, or use a larger machine",
                field="/chain",
            )

    def milliseconds(self, shape: "Shape") -> float:
        """The quickest step: what else the machine does only adds."""
        if shape not in self._known:
            self._known[shape] = step_milliseconds(self._folder(shape), self._decoder)
        return self._known[shape]

    def _folder(self, shape: "Shape") -> Path:
        """A folder with the shape's configuration and nothing else."""
        decoder, asked = self._decoder, shape.asked(self._technique)
        config: dict[str, Any] = json.loads((decoder.reader.folder / CONFIG).read_text())
        if asked.cuts:
            config = planned(decoder, asked, self._scratch).config
        if shape.depth:
            gone = may_go(len(decoder), asked)[: shape.depth]
            relist(config, decoder, [index for index in range(len(decoder)) if index not in gone])
        folder = self._scratch / "timed"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config))
        return folder


@torch.no_grad()
def step_milliseconds(folder: Path, decoder: "Decoder") -> float:
    """The quickest of some steps behind a short prompt, on the decoder's device in the type of its checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with no_init_weights(), decoder.device:
        model = AutoModelForCausalLM.from_config(config, dtype=decoder.stored_dtype, trust_remote_code=False).eval()
    for parameter in model.parameters():
        parameter.uniform_(-0.02, 0.02)  # what memory held before could be slow to compute with
    ids_1T = torch.arange(_PROMPT_tokens, device=decoder.device)[None] % config.get_text_config().vocab_size
    cache = DynamicCache(config=config)
    token = model(ids_1T, past_key_values=cache).logits[:, -1:].argmax(-1)
    times: list[float] = []
    for _ in range(_WARM_steps + _TIMED_steps):
        started = time.perf_counter()
        token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
        token.item()  # waits for a GPU
        times.append(1000 * (time.perf_counter() - started))
    return min(times[_WARM_steps:])
