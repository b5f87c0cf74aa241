"""A head that labels texts, put on an encoder that has none."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from optcore.errors import UnknownArchitecture
from optcore.links import link_companions
from optcore.training.labelled import names_of
from optcore.training.ranks import Ranks

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.data import TrainingData


class Begun(NamedTuple):
    """What training starts from."""

    folder: Path
    """The run's checkpoint, or one with its body and a head, in the scratch."""
    made: frozenset[str] = frozenset()
    """Parameters, by path, that were drawn: a scope that moves little must move them, for they have learned nothing."""


def with_classifier(run: "Run", data: "TrainingData", ranks: Ranks) -> Begun:
    """The checkpoint of `run`, or where it has no head for labels and is to learn some, one that has, in the scratch.

    The body is the checkpoint's; the head is drawn from the run's seed, the same whenever it is drawn. Raises
    `UnknownArchitecture` for a model that transformers has no such head for.
    """
    from optcore.architecture import task_of

    if data.kind != "labelled" or task_of(run.checkpoint) == "text-classification":
        return Begun(run.checkpoint)
    folder, made = run.scratch / "classifier", run.scratch / "classifier-made.json"
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        link_companions(run.checkpoint, folder)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(run.seed)
            model, missing = _headed(run.checkpoint, names_of(run, data))
        model.save_pretrained(folder)
        made.write_text(json.dumps(missing))
    ranks.wait()
    return Begun(folder, frozenset(json.loads(made.read_text())))


def _headed(checkpoint: Path, names: dict[int, str]) -> tuple[Any, list[str]]:
    """The model, and which parameters the checkpoint does not have."""
    from transformers import AutoModelForSequenceClassification

    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: n for n, name in names.items()}}
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **labels,
        )
        return model, sorted(found["missing_keys"])
    except ValueError as error:
        raise UnknownArchitecture(
            f"transformers has no head that labels texts for this model: {next(iter(str(error).splitlines()))}",
            remedy="choose a BERT-style encoder",
            field="/model",
        ) from error
