"""A draft to begin with: a folder of this machine, or a Hub repository brought to one.

It is no language model of its own, and needs no tokenizer.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from optcore.draft_document import DESCRIPTION
from optcore.draft_made import MADE, read_made
from optcore.errors import BadCheckpoint, VocabularyMismatch
from optcore.references import ModelRef
from optcore.sources.checkpoint_files import CONFIG, INDEX, SINGLE, content_digest, hash_files, weights_form
from optcore.sources.client import HubRepo
from optcore.sources.hub import Report, download, pin, verify
from optcore.sources.local import check_weights, read_object, require_folder
from optcore.sources.models import FetchedModel

_TOKENIZER = "tokenizer.json"
_TARGETS = ("transformer_layer_config", "text_config")
"""Where layouts put the configuration of the model that a draft was made for, or of its own layer like that."""


def fetch_draft(draft: ModelRef, cache: Path, report: Report, place: str) -> FetchedModel:
    """Bring a draft here and check its files. Hub files come to `cache`, a local folder is used where it lies.

    `place` is where the recipe names it, a JSON Pointer. Raises as `optcore.sources.fetch_model` does.
    """
    if draft.id is not None:
        return _from_hub(draft.id, draft.revision, cache, report, place)
    folder, field = Path(str(draft.path)), f"{place}/path"
    require_folder(folder, field)
    names = _checked(folder, field)
    return FetchedModel(folder.absolute(), None, content_digest(hash_files(folder, names, report)))


def check_draft_fits(model: Path, draft: Path, place: str) -> None:
    """Raise `VocabularyMismatch` for a draft that speaks of other tokens than the model, `BadCheckpoint` for one that
    says more tokens than the model knows, or beside which lies another document than how it did."""
    read_made(draft, place)
    own, config = _vocabulary(read_object(model / CONFIG, "/model")), read_object(draft / CONFIG, place)
    theirs, said = _vocabulary(config), config.get("draft_vocab_size")
    if own and theirs and own != theirs:
        raise _mismatch(f"it was made for a model of {theirs} tokens, and this one has {own}", place)
    if own and isinstance(said, int) and said > own:
        raise BadCheckpoint(
            f"the draft says {said} tokens, and the model knows {own}",
            remedy="name a draft that was made for this model",
            field=place,
        )
    if (model / _TOKENIZER).is_file() and (draft / _TOKENIZER).is_file():
        _check_same_tokens(model / _TOKENIZER, draft / _TOKENIZER, place)


def _from_hub(id: str, revision: str, cache: Path, report: Report, place: str) -> FetchedModel:
    repo = HubRepo(kind="model", id=id, revision=revision, id_field=f"{place}/id", revision_field=f"{place}/revision")
    pinned = pin(repo)
    form = weights_form(pinned.files, str(repo), repo.id_field)
    shards = sorted(name for name in pinned.files if name.endswith(".safetensors") and "/" not in name)
    weights = (SINGLE,) if form == SINGLE else (INDEX, *shards)
    folder = download(repo, pinned, (*_documents(pinned.files, str(repo), repo.id_field), *weights), cache, report)
    hashes = hash_files(folder, _checked(folder, repo.id_field), report)
    verify(folder, pinned, hashes)
    return FetchedModel(folder, pinned.commit, content_digest(hashes))


def _checked(folder: Path, field: str) -> tuple[str, ...]:
    """Names of the files that matter, after checking that all are there, whole and inside."""
    names = {path.name for path in folder.iterdir() if path.is_file() or path.is_symlink()}
    return check_weights(folder, _documents(names, str(folder), field), field)


def _documents(names: Collection[str], where: str, field: str) -> list[str]:
    """What lies beside a draft's weights. Raises `BadCheckpoint` where nothing says what they are."""
    if CONFIG not in names:
        raise BadCheckpoint(f"{where} has no {CONFIG}", remedy="name the folder of a draft", field=field)
    return [name for name in (CONFIG, _TOKENIZER, DESCRIPTION, MADE) if name in names]


def _vocabulary(config: dict[str, Any]) -> int:
    """Tokens of the target; 0 where the config does not say."""
    parts = (config, *(config[name] for name in _TARGETS if isinstance(config.get(name), dict)))
    return next((size for part in parts if isinstance(size := part.get("vocab_size"), int)), 0)


def _check_same_tokens(own: Path, theirs: Path, place: str) -> None:
    from tokenizers import Tokenizer

    known, named = (Tokenizer.from_file(str(path)).get_vocab() for path in (own, theirs))
    if known != named:
        different = sum(named.get(token) != number for token, number in known.items())
        raise _mismatch(f"{different} of {len(known)} tokens have another number, or none, there", place)


def _mismatch(said: str, place: str) -> VocabularyMismatch:
    return VocabularyMismatch(
        f"the draft and the model have different vocabularies: {said}",
        remedy="name a draft that was made for this model",
        field=place,
    )
