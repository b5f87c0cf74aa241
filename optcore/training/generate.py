"""Text that a model writes itself, to learn from where there is none: its own distribution, at a temperature."""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from optcore.architecture import task_of
from optcore.durable import write_settled
from optcore.errors import DataError
from optcore.seeds import seed_of
from optcore.training.windows import BEGINS, LEARNED, Batch

if TYPE_CHECKING:
    from optcore.calibration.text import Texts
    from optcore.run import Run
    from optcore.speculative.target import Target
    from optcore.techniques.data import TrainingData
    from optcore.training.packing import Document

_BATCH_windows = 32
_KEPT_logits = "logits_to_keep"


def generated(
    run: "Run", texts: "Texts", data: "TrainingData", documents: Iterable["Document"], length: int, wanted: int
) -> Iterator[Batch]:
    """Windows [B, length] that the teacher continues, from a prompt or from a random token.

    They are kept in the stage's journal: those that a killed process wrote are not written again.
    """
    from optcore.training.prepare import first_tokens

    target, before = writer_of(run), list(texts.frame.before)
    prompts = first_tokens(documents, data.prompt_tokens) if data.prompt_tokens else _random_tokens(texts, run.seed)
    for number in range(0, wanted, _BATCH_windows):
        begun = [before + prompt for prompt in islice(prompts, min(_BATCH_windows, wanted - number))]
        if not begun:
            return
        write = partial(_continued, target, begun, length, data.temperature, seed_of(run.seed, number))
        tokens_BT = torch.tensor(kept_once(run.records / f"generated-{number:08d}.json", write))
        yield Batch(tokens_BT, _flags(tokens_BT, len(before)))


def writer_folder(run: "Run") -> Path:
    """Whose words training text is made of: the teacher's, or the checkpoint's own."""
    return run.teacher or run.checkpoint


def writer_of(run: "Run") -> "Target":
    """The model that writes: a quantized one as it will compute. Raises `DataError` for an encoder, unread."""
    from optcore.speculative.target import Target

    if task_of(writer_folder(run)) != "text-generation":
        raise DataError("an encoder cannot write text", remedy="choose another kind of data", field="/chain")
    return Target(writer_folder(run))


def kept_once(path: Path, write: Callable[[], Any]) -> Any:
    """What a JSON file of the journal holds; it is written where no process did before."""
    if not path.exists():
        write_settled(path, json.dumps(write()))
    return json.loads(path.read_text())


def _continued(target: "Target", begun: list[list[int]], length: int, temperature: float, seed: int) -> list[list[int]]:
    generator = torch.Generator(target.device).manual_seed(seed)
    prompt_BT = torch.tensor(begun, device=target.device)
    tokens: list[list[int]] = continued(target.model, prompt_BT, length, temperature, generator).tolist()
    return tokens


@torch.no_grad()
def continued(
    model: nn.Module, prompt_BT: torch.Tensor, length: int, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """Token ids [B, length]: prompts and what the model says next, drawn at a temperature (0: the likeliest).

    Nothing ends a window: behind an end-of-text token the model begins another text, as packed windows do.
    """
    cache, last = new_cache(model), last_only(model)
    tokens_BT = prompt_BT
    step: torch.Tensor = prompt_BT
    while tokens_BT.shape[1] < length:
        logits_BV = model(input_ids=step, past_key_values=cache, use_cache=True, **last).logits[:, -1].float()
        step = _drawn(logits_BV, temperature, generator)
        tokens_BT = torch.cat((tokens_BT, step), 1)
    return tokens_BT[:, :length]


def new_cache(model: Any) -> Any:
    """An empty cache for all layers of a model."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def last_only(model: nn.Module) -> dict[str, int]:
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
