"""The one evaluator of every row, ours and theirs: plain torch on two plain models, in whatever environment."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

BATCH_windows = 8


def load(folder: str | Path) -> Any:
    """The model in float32, whatever its checkpoint is stored in."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def source_logits(model: Any, windows_ST: Tensor) -> Tensor:
    """Float32 logits [S, T-1, V] of the model that everybody starts from: computed once, read by every row."""
    return torch.cat([model(batch_BT).logits[:, :-1].float() for batch_BT in windows_ST.split(BATCH_windows)])


@torch.no_grad()
def score(source_SPV: Tensor, quantized: Any, windows_ST: Tensor) -> dict[str, Any]:
    """Mean KL(source || quantized) in nats a token, both perplexities, and the share of equal top-1 predictions.

    The standard error is that of the windows' means: tokens of one window are not independent.
    """
    batches = zip(source_SPV.split(BATCH_windows), windows_ST.split(BATCH_windows), strict=True)
    columns = [_windows(source_BPV, quantized, tokens_BT) for source_BPV, tokens_BT in batches]
    kl_S, source_nll_S, nll_S, agreement_S = (torch.cat(parts).double() for parts in zip(*columns, strict=True))
    return {
        "kl": kl_S.mean().item(),
        "kl_se": (kl_S.std() / math.sqrt(len(kl_S))).item(),
        "perplexity": math.exp(nll_S.mean().item()),
        "source_perplexity": math.exp(source_nll_S.mean().item()),
        "agreement": agreement_S.mean().item(),
        "window_kl": kl_S.tolist(),
    }


def _windows(source_BPV: Tensor, quantized: Any, tokens_BT: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each window's mean KL, the text's negative log likelihood under both, and agreement."""
    next_BP = tokens_BT[:, 1:]
    p_BPV, q_BPV = (log_softmax(logits, -1) for logits in (source_BPV, quantized(tokens_BT).logits[:, :-1].float()))
    kl_BP = (p_BPV.exp() * (p_BPV - q_BPV)).sum(-1)
    source_BP, own_BP = (
        cross_entropy(log_BPV.transpose(1, 2), next_BP, reduction="none") for log_BPV in (p_BPV, q_BPV)
    )
    agreement_BP = (p_BPV.argmax(-1) == q_BPV.argmax(-1)).float()
    return kl_BP.mean(1), source_BP.mean(1), own_BP.mean(1), agreement_BP.mean(1)
