"""Tokens a second and peak memory of a checkpoint in transformers, each measured in a process of its own."""

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from optcore.conditional import load_conditional
from optcore.engines import loading
from optcore.evaluate.throughput import WHOLE_room
from optcore.host_memory import machine_bytes
from optcore.quantization import load_quantization
from optcore.report import Measurement
from optcore.runners import CPU_TARGETS
from optcore.serving.memory import peak_memory_bytes
from optcore.sizes import weight_bytes

if TYPE_CHECKING:
    from optcore.evaluate.throughput import Throughput
    from optcore.run import Run

_NOTE = "in transformers, which unpacks the weights and imitates the format; a serving engine computes in it"


def measure_throughput(run: "Run", evaluator: "Throughput") -> list[Measurement]:
    """Rows for prefill and decode speed and peak memory; none, with a notice, where it cannot be measured here."""
    assert run.export
    if run.target in CPU_TARGETS:
        return []  # the evaluator `engines` measures it in the engine that it is written for
    if reason := _cannot(run):
        run.notice(f"throughput not measured: {reason}")
        return []
    try:
        before = _measured(run.source, evaluator)
        run.progress("evaluating", 1, 2)
        after = _measured(run.export, evaluator)
        run.progress("evaluating", 2, 2)
    except subprocess.CalledProcessError:  # why is on standard error; a finished checkpoint is not lost for it
        run.notice("throughput not measured: transformers could not generate with this checkpoint on this machine")
        return []

    def row(name: str, title: str, unit: str, better: Literal["lower", "higher"]) -> Measurement:
        return Measurement(
            name=name, title=title, unit=unit, source=before[name], result=after[name], better=better, note=_NOTE
        )

    return [
        row("prefill_speed", "Prefill in transformers", "tokens/s", "higher"),
        row("decode_speed", "Decode in transformers", "tokens/s", "higher"),
        row("peak_memory_bytes", "Peak memory in transformers", "bytes", "lower"),
    ]


def _cannot(run: "Run") -> str:
    if load_conditional(run.checkpoint):
        return "transformers does not read conditional.json, and would run the model without what it says"
    description = load_quantization(run.checkpoint)
    formats = (*(scheme.name for scheme in description.schemes),) if description else ()
    if run.target == "compact" or "transformers" not in loading(run.target, formats):
        return f"transformers does not read the {run.target} format"
    if formats and run.target != "dense" and not find_spec("compressed_tensors"):
        return "the package compressed-tensors is not installed"
    if weight_bytes(run.source) * WHOLE_room > machine_bytes():
        return "the model does not fit into this machine's free memory as a whole"
    return ""


def _measured(folder: Path, evaluator: "Throughput") -> dict[str, float]:
    sizes = [str(evaluator.prompt_tokens), str(evaluator.new_tokens)]
    command = [sys.executable, "-m", "optcore.evaluate.generation", str(folder), *sizes]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


@torch.no_grad()
def _generate(folder: Path, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    """One warm-up, then one timed greedy generation with a KV cache."""
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if torch.cuda.is_available():
        model.cuda()
    ids = torch.arange(prompt_tokens, device=model.device)[None] % model.config.get_text_config().vocab_size
    model(ids[:, :2])
    started = time.perf_counter()
    cache = DynamicCache(config=model.config)
    token = model(ids, past_key_values=cache).logits[:, -1:].argmax(-1)
    filled = time.perf_counter()
    for _ in range(new_tokens):
        token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
    ended = time.perf_counter()
    return {
        "prefill_speed": prompt_tokens / (filled - started),
        "decode_speed": new_tokens / (ended - filled),
        "peak_memory_bytes": _peak_memory_bytes(),
    }


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_memory_bytes()


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt_tokens", type=int)
    parser.add_argument("new_tokens", type=int)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(_generate(options.folder, options.prompt_tokens, options.new_tokens)) + "\n")


if __name__ == "__main__":
    main()
