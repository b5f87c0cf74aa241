"""modelopt: one of its named configurations, `weights` for its weights alone, or `kv`, `gptq`, `auto` and a number."""

import copy
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.block_kernels import install
from benchmarks.peers.job import Job

HEAD_bits = 16


def quantize(job: Job) -> Any:
    """The model with fake quantizers inserted."""
    import modelopt.torch.quantization as mtq

    install()
    model = job.load()
    kind, _, name = job.recipe.rpartition(" ")
    if kind == "auto":
        return _auto(job, mtq, model, float(name))
    with job.timed():
        return mtq.quantize(model, _configuration(mtq, kind, name), lambda model: _forward(job, model))


def _configuration(mtq: Any, kind: str, name: str) -> dict[str, Any]:
    config = copy.deepcopy(getattr(mtq, name))
    if kind == "weights":
        config["quant_cfg"].append({"quantizer_name": "*input_quantizer", "enable": False})
    elif kind == "gptq":
        config["algorithm"] = {"method": "gptq"}
    elif kind == "kv":
        config["quant_cfg"].insert(0, {"quantizer_name": "*", "enable": False})
        config["algorithm"] = "max"
    return config


@torch.no_grad()
def _forward(job: Job, model: Any) -> None:
    for tokens_BT in job.batches():
        model(tokens_BT)


def _auto(job: Job, mtq: Any, model: Any, bits: float) -> Any:
    """NVFP4, FP8 or nothing for each group; `bits` are over the decoder's linears, which alone are quantized."""
    with job.timed():
        found, state = mtq.auto_quantize(
            model,
            constraints={"effective_bits": _with_head(model, bits)},
            quantization_formats=[mtq.NVFP4_DEFAULT_CFG, mtq.FP8_DEFAULT_CFG],
            data_loader=job.batches(),
            forward_step=lambda model, tokens_BT: model(tokens_BT),
            loss_func=_loss,
            disabled_layers=["*lm_head*"],
            num_calib_steps=len(job.batches()),
            num_score_steps=len(job.batches()),
        )
    job.measured["bits"] = _without_head(model, float(state["best"]["constraints"]["effective_bits"]))
    return found


def _loss(output: Any, tokens_BT: Any) -> Any:
    return cross_entropy(output.logits[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())


def _with_head(model: Any, bits: float) -> float:
    """modelopt counts the head, which it leaves in 16 bits, among what the average is over."""
    head, rest = _sizes(model)
    return (bits * rest + HEAD_bits * head) / (head + rest)


def _without_head(model: Any, bits: float) -> float:
    head, rest = _sizes(model)
    return (bits * (head + rest) - HEAD_bits * head) / rest


def _sizes(model: Any) -> tuple[int, int]:
    head = model.lm_head.weight.numel()
    linears = [module.weight.numel() for name, module in model.named_modules() if name.endswith("_proj")]
    return head, sum(linears)
