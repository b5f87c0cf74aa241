"""Whether a draft's settings fit the model that it guesses for: read from `config.json`, before anything is written."""

import json
from pathlib import Path

from optcore.architecture import layer_count
from optcore.errors import RecipeError
from optcore.recipe import Recipe
from optcore.techniques.draft import Draft
from optcore.techniques.restructuring import Restructuring


def check_drafts(recipe: Recipe, source: Path) -> None:
    """Refuse a draft that does not fit the source, where no entry before it makes another model of that.

    Raises `RecipeError`.
    """
    for number, technique in enumerate(recipe.chain):
        if isinstance(technique, Restructuring) or "student" in technique.models:
            return
        if isinstance(technique, Draft):
            check_draft(technique, source, f"/chain/{number}")


def check_draft(technique: Draft, target: Path, place: str) -> None:
    """Refuse taps on layers that a target lacks, more layers than it has, more tokens than it knows, and a mask that it
    does not.

    `place` is where the technique stands in the recipe, a JSON Pointer. Raises `RecipeError`.
    """
    config = json.loads((target / "config.json").read_text())
    said = {**config, **(config.get("text_config") or {})}.get("vocab_size")
    layers, vocabulary = layer_count(config), said if isinstance(said, int) else None
    if layers and technique.taps and max(technique.taps) >= layers:
        raise RecipeError(
            f"the draft would read layer {max(technique.taps)}, and the model has layers 0 to {layers - 1}",
            remedy="name other `taps`, or leave them out",
            field=f"{place}/taps",
        )
    if layers and technique.method == "model" and not technique.start and (technique.layers or 1) >= layers:
        raise RecipeError(
            f"a draft of {technique.layers or 1} of the model's {layers} layers would not be smaller",
            remedy="keep fewer `layers`, or choose another `method`",
            field=f"{place}/layers",
        )
    if vocabulary and technique.vocabulary and technique.vocabulary > vocabulary:
        raise RecipeError(
            f"the draft could say {technique.vocabulary} tokens, and the model knows {vocabulary}",
            remedy="lower `vocabulary`, or leave it out",
            field=f"{place}/vocabulary",
        )
    if vocabulary and technique.mask_token is not None and technique.mask_token >= vocabulary:
        raise RecipeError(
            f"the mask would be token {technique.mask_token}, and the model knows tokens 0 to {vocabulary - 1}",
            remedy="name a token of the model that never occurs in text, or leave `mask_token` out",
            field=f"{place}/mask_token",
        )
