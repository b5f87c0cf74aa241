"""Text that a model writes itself, to learn from where there is none: its own distribution, at a temperature."""

import json
from collections.abc import Iterable, Iterator
from inspect import signature
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optcore.durable import write_settled
from optcore.errors import DataError
from optcore.streaming.decoder import Decoder
from optcore.streaming.simulate import as_quantized
from optcore.training.windows import BEGINS, LEARNED, Batch

if TYPE_CHECKING:
    from optcore.calibration.text import Texts
    from optcore.run import Run
    from optcore.techniques.data import TrainingData
    from optcore.training.packing import Document

_BATCH_windows = 32
_KEPT_logits = "logits_to_keep"


def generated(
    run: "Run", texts: "Texts", data: "TrainingData", documents: Iterable["Document"], length: int, wanted: int
) -> Iterator[Batch]:
    """Windows [B, length] that the teacher continues, from a prompt or from a random token; a quantized teacher writes
    what its quantized form would, but for the rounding of its KV cache.

    They are kept in the stage's journal: those that a killed process wrote are not written again.
    """
    from optcore.training.prepare import first_tokens

    decoder = Decoder(run.teacher or run.checkpoint)
    if not decoder.is_causal:
        raise DataError("an encoder cannot write text", remedy="choose another kind of data", field="/chain")
    model, before = decoder.load_all(), list(texts.frame.before)
    prompts = first_tokens(documents, data.prompt_tokens) if data.prompt_tokens else _random_tokens(texts, run.seed)
    with as_quantized(decoder):
        for number in range(0, wanted, _BATCH_windows):
            begun = [before + prompt for prompt in islice(prompts, min(_BATCH_windows, wanted - number))]
            if not begun:
                return
            kept = run.records / f"generated-{number:08d}.json"
            if not kept.exists():
                generator = torch.Generator(decoder.device).manual_seed((run.seed << 32) + number)
                prompt_BT = torch.tensor(begun, device=decoder.device)
                tokens_BT = continued(model, prompt_BT, length, data.temperature, generator)
                write_settled(kept, json.dumps(tokens_BT.tolist()))
            tokens_BT = torch.tensor(json.loads(kept.read_text()))
            yield Batch(tokens_BT, _flags(tokens_BT, len(before)))


@torch.no_grad()
def continued(
    model: nn.Module, prompt_BT: torch.Tensor, length: int, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """Token ids [B, length]: prompts and what the model says next, drawn at a temperature (0: the likeliest).

    Nothing ends a window: behind an end-of-text token the model begins another text, as packed windows do.
    """
    cache, last = _cache(model), _last_only(model)
    tokens_BT = prompt_BT
    step: torch.Tensor = prompt_BT
    while tokens_BT.shape[1] < length:
        logits_BV = model(input_ids=step, past_key_values=cache, use_cache=True, **last).logits[:, -1].float()
        step = _drawn(logits_BV, temperature, generator)
        tokens_BT = torch.cat((tokens_BT, step), 1)
    return tokens_BT[:, :length]


def _cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _last_only(model: nn.Module) -> dict[str, int]:
    """What keeps a forward pass from making logits of a whole prompt, where the model knows it."""
    return {_KEPT_logits: 1} if _KEPT_logits in signature(model.forward).parameters else {}


def _drawn(logits_BV: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)


def _flags(tokens_BT: torch.Tensor, before: int) -> torch.Tensor:
    flags_BT = torch.full(tokens_BT.shape, LEARNED, dtype=torch.uint8)
    flags_BT[:, :before] = 0
    flags_BT[:, 0] |= BEGINS
    return flags_BT


def _random_tokens(texts: "Texts", seed: int) -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(0, texts.vocabulary, (1,), generator=generator).tolist()
