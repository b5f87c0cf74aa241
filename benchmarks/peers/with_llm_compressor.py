"""llm-compressor: a preset scheme with an algorithm (`rtn`, `gptq`, `awq`, `sq+gptq`), or a KV cache of its own."""

from typing import Any

from benchmarks.peers.job import Job

IGNORED = ["lm_head"]
BATCH_windows = 8
SMOOTHING_strength = 0.8  # what its own W8A8 example uses


def quantize(job: Job) -> Any:
    """The model as `oneshot` leaves it: fake-quantized, not yet compressed."""
    from llmcompressor import oneshot

    _leave_memory_pageable()
    model = job.load()
    algorithm, _, name = job.recipe.rpartition(" ")
    windows_ST = job.windows("calibration")
    with job.timed():
        oneshot(
            model=model,
            dataset=_dataset(windows_ST),
            recipe=_recipe(algorithm, name),
            max_seq_length=windows_ST.shape[1],
            num_calibration_samples=len(windows_ST),
            batch_size=BATCH_windows,
        )
    return model


def save(job: Job, model: Any) -> None:
    """Its own compressed-tensors checkpoint, for the bytes."""
    model.save_pretrained(job.scratch / "export", save_compressed=True)
    job.written(job.scratch / "export")


def _recipe(algorithm: str, name: str) -> list[Any]:
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    if algorithm == "kv":
        return [QuantizationModifier(ignore=IGNORED, kv_cache_scheme=_kv_cache(name))]
    settings = _scheme(name)
    nearest = QuantizationModifier(**settings)
    return {
        "rtn": [nearest],
        "gptq": [GPTQModifier(**settings)],
        "awq": [AWQModifier(duo_scaling="both"), nearest],
        "sq+rtn": [SmoothQuantModifier(smoothing_strength=SMOOTHING_strength), nearest],
        "sq+gptq": [SmoothQuantModifier(smoothing_strength=SMOOTHING_strength), GPTQModifier(**settings)],
    }[algorithm]


def _scheme(name: str) -> dict[str, Any]:
    """A preset by name; `W4A16-g32` and the like differ from one in the group size."""
    from compressed_tensors.quantization import preset_name_to_scheme

    preset, _, group = name.partition("-g")
    if not group:
        return {"targets": ["Linear"], "ignore": IGNORED, "scheme": preset}
    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme.weights.group_size = int(group)
    return {"ignore": IGNORED, "config_groups": {"group_0": scheme}}


def _kv_cache(name: str) -> dict[str, Any]:
    assert name == "fp8"
    return {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def _dataset(windows_ST: Any) -> Any:
    from datasets import Dataset

    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows_ST.tolist()]
    return Dataset.from_list(rows)


def _leave_memory_pageable() -> None:
    """AWQ pins memory without asking whether there is an accelerator; there is none here."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    IntermediatesCache.pin_memory = lambda self, *arguments, **more: None
