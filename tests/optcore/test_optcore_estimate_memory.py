"""What an estimate says of the memory of training, on large models and real machines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_optcore_estimate import GIB, H200, RTX_4090, large
from test_optcore_estimate_facts import LLAMA_70B, llama
from transformers import AutoModelForCausalLM, LlamaConfig

from optcore.estimate.document import Machine, StageEstimate
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import ModelFacts, from_folder

LLAMA_8B = llama(32, 4096, 14336, 32, 8, 128_256)
INT4 = {"technique": "ptq", "scheme": "int4"}
BLOCK = {"technique": "qad", "steps": 10, "scope": "block"}


def stage_of(facts: ModelFacts, machine: Machine, name: str, *chain: dict[str, Any]) -> StageEstimate:
    """What one stage of a chain will take."""
    more = {"target": {"format": "dense"}} if INT4 not in chain else {}
    found = estimate(large(*chain, **more), facts, machine)
    stage = found.of(name)
    assert stage, found.problems
    return stage


def test_a_frozen_base_in_four_bits_fits_a_small_gpu() -> None:
    """8B: embeddings and head in float32 are 3.9 GiB, 7 billion weights at 4.13 bits 3.4."""
    adapters = {"technique": "finetune", "steps": 10, "scope": "lora"}
    plain = stage_of(LLAMA_8B, RTX_4090, "1-finetune", adapters)
    coded = stage_of(LLAMA_8B, RTX_4090, "1-finetune", {**adapters, "lora": {"base": "nf4"}})
    weights = 4 * LLAMA_8B.parameters
    assert plain.gpu_memory_bytes > weights
    linears = sum(one.elements for one in LLAMA_8B.linears)
    assert plain.gpu_memory_bytes - coded.gpu_memory_bytes > 0.99 * (4 - 4.13 / 8) * linears
    assert coded.gpu_memory_bytes > weights - 3.5 * linears
    assert estimate(large({**adapters, "lora": {"base": "nf4"}}, INT4), LLAMA_8B, RTX_4090).fits


def test_training_layer_by_layer_holds_one_layer() -> None:
    """70B: embeddings in bfloat16 (3.9 GiB), a layer as it trains (16 bytes), as it was best, and dense."""
    stage = stage_of(LLAMA_70B, H200, "2-qad", INT4, BLOCK)
    layer = LLAMA_70B.largest_layer
    assert 20 * layer + 2 * LLAMA_70B.outside < stage.gpu_memory_bytes < 36 * layer + 6 * LLAMA_70B.outside
    assert estimate(large(INT4, BLOCK), LLAMA_70B, H200).fits
    assert estimate(large(INT4, BLOCK), LLAMA_8B, RTX_4090).fits
    deeper = stage_of(llama(160, 8192, 28672, 64, 8, 128_256), H200, "2-qad", INT4, BLOCK)
    assert deeper.gpu_memory_bytes == stage.gpu_memory_bytes


def test_a_checkpoint_passes_through_the_host() -> None:
    """Of 8B: 12 bytes for each parameter that moves, and 16 of them on the GPU beside the teacher."""
    stage = stage_of(LLAMA_8B, H200, "1-distill", {"technique": "distill", "steps": 10})
    moving = LLAMA_8B.parameters
    assert 12 * moving < stage.host_memory_bytes < 12 * moving + 4 * GIB
    assert 18 * moving < stage.gpu_memory_bytes < 20 * moving


SPEED = {"evaluate": [{"evaluator": "throughput", "prompt_tokens": 16, "new_tokens": 2}]}


def test_throughput_loads_the_model_as_a_whole_where_it_has_room() -> None:
    """Of 70B, 131.4 GiB: the engine asks for three times that of the host, and leaves the measurement out else."""
    machine = H200.model_copy(update={"gpu_memory_bytes": 200 * GIB})
    found = estimate(large(INT4, **SPEED), LLAMA_70B, machine)
    stage = found.of("3-evaluate")
    assert stage
    assert found.problems == ()
    weights = LLAMA_70B.weight_bytes
    assert weights < stage.host_memory_bytes < weights + 4 * GIB
    assert weights < stage.gpu_memory_bytes < weights + GIB
    for short in ({"host_memory_bytes": 3 * weights - 1}, {"gpu_memory_bytes": weights}):
        less = estimate(large(INT4, **SPEED), LLAMA_70B, machine.model_copy(update=short))
        (problem,) = less.problems
        assert (problem.field, problem.fatal) == ("/evaluate", False)
        assert problem.message.startswith("throughput will not be measured here")
        without = less.of("3-evaluate")
        assert without
        assert without.host_memory_bytes < GIB


@pytest.mark.proof
@pytest.mark.slow
def test_what_loading_a_model_takes(tmp_path: Path, stdlib_model: Path) -> None:
    """In the process that writes with it, beside what it takes of the small model that ships."""
    sizes = []
    for folder in (stdlib_model, _larger(tmp_path)):
        command = [sys.executable, "-m", "optcore.evaluate.generation", str(folder), "8", "1"]
        done = subprocess.run(command, check=True, capture_output=True)
        sizes.append((from_folder(folder).weight_bytes, json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"]))
    (small, before), (larger, after) = sizes
    print(f"{larger - small} bytes of weights more take {after - before} bytes more")
    assert 0.8 < (after - before) / (larger - small) < 1.5


def _larger(folder: Path) -> Path:
    """A Llama of 134 million parameters in bfloat16."""
    config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, vocab_size=1000)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder
