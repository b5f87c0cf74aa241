"""A head that labels texts, put on an encoder that has none."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optcore.errors import UnknownArchitecture
from optcore.links import link_companions
from optcore.training.labelled import names_of
from optcore.training.ranks import Ranks

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.data import TrainingData


def with_classifier(run: "Run", data: "TrainingData", ranks: Ranks) -> Path:
    """The checkpoint of `run`, or where it has no head for labels and is to learn some, one that has, in the scratch.

    The body is the checkpoint's; the head is drawn from the run's seed, the same whenever it is drawn. Raises
    `UnknownArchitecture` for a model that transformers has no such head for.
    """
    from optcore.architecture import task_of

    if data.kind != "labelled" or task_of(run.checkpoint) == "text-classification":
        return run.checkpoint
    folder = run.scratch / "classifier"
    if ranks.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        link_companions(run.checkpoint, folder)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(run.seed)
            _headed(run.checkpoint, names_of(run, data)).save_pretrained(folder)
    ranks.wait()
    return folder


def _headed(checkpoint: Path, names: dict[int, str]) -> Any:
    from transformers import AutoModelForSequenceClassification

    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: n for n, name in names.items()}}
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            checkpoint, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **labels
        )
    except ValueError as error:
        raise UnknownArchitecture(
            f"transformers has no head that labels texts for this model: {next(iter(str(error).splitlines()))}",
            remedy="choose a BERT-style encoder",
            field="/model",
        ) from error
