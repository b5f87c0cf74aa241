"""What a training technique learns from: text of the user's, conversations, what a model writes, or nothing at all."""

from typing import Literal, Self

from pydantic import Field, model_validator

from optcore.references import Label, TextSource

_GREEDY_share = 0.5


class TrainingData(TextSource):
    """Training text; when neither data set nor file is named, the recipe's calibration text but for held-out parts."""

    kind: Literal["text", "chat", "labelled", "generated", "answers", "random"] = "text"
    """`text`: documents. `chat`: conversations, written with the tokenizer's chat template; only what the assistant
    says is learned. `labelled`: texts with a label each, for classifiers. `generated`: continuations that the teacher
    writes. `answers`: prompts that a draft's target answers anew, since its own words are what a draft is to guess: of
    conversations every turn of the user, behind the target's own answers to those before; where the data has none,
    pieces of documents. Only answers are learned. `random`: random tokens, for when there is nothing else; with
    distillation from the model itself even these do no harm."""
    windows: int | None = Field(default=None, ge=1, le=10**8)
    """Most windows to prepare; what training goes through twice is shuffled anew. None: as many as the steps need."""
    packing: bool = True
    """Fill windows with several documents, none of which attends to another. Without it a window is a piece of the text
    as it comes, as in calibration."""
    label: Label = "label"
    """Of `labelled`: the column of the labels, numbers or names, as in `classification`."""
    prompt_tokens: int = Field(default=16, ge=0, le=8192)
    """Of `generated`: tokens of text that each window begins with; 0 begins with a single random token. Of `answers`
    to documents: tokens of a prompt. Of on-policy distillation: what the student goes on from, one at least."""
    temperature: float = Field(default=1.0, ge=0, le=10)
    """Of `generated`, `answers` and on-policy distillation: 0 takes the likeliest token."""
    greedy_share: float = Field(default=_GREEDY_share, ge=0, le=1)
    """Of `answers`: how many of the conversations are answered with the likeliest tokens, the others at `temperature`:
    a draft serves both."""
    new_tokens: int | None = Field(default=None, ge=1, le=131_072)
    """Of `answers`: most tokens of one. None: until the model ends it, or the window is full."""

    @property
    def is_text(self) -> bool:
        """Whether text is read at all."""
        return self.kind != "random" and (self.kind != "generated" or self.prompt_tokens > 0)

    @property
    def is_own(self) -> bool:
        """Whether it names text of its own, and not the recipe's."""
        return self.dataset is not None or self.path is not None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.dataset is not None and self.path is not None:
            raise ValueError("give one of `dataset` and `path`")
        if self.kind == "random" and self.is_own:
            raise ValueError(
                "random tokens come from no data set: leave out `dataset` and `path`, or choose another kind"
            )
        if self.kind != "answers" and (self.new_tokens, self.greedy_share) != (None, _GREEDY_share):
            raise ValueError("`new_tokens` and `greedy_share` are settings of `kind: answers`")
        if self.kind == "answers" and not self.prompt_tokens:
            raise ValueError("an answer needs a prompt: `prompt_tokens` of 1 at least")
        return self
