"""The recipe: model, chain of techniques, target. One definition for YAML, REST, SDK, database and docs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from optcore.errors import RecipeError
from optcore.evaluate import AnyEvaluator, Fidelity, Throughput
from optcore.export import AnyExport, CompressedTensors
from optcore.frozen import Frozen, canonical_json, digest_of, tags
from optcore.references import Calibration, Hardware, Label, Limits, ModelRef, Publish
from optcore.search.objective import MAX_ENTRIES, Objective, Sweep
from optcore.techniques import AnyTechnique
from optcore.techniques.losses import AnyLoss
from optcore.yaml_text import read_document

MAX_RECIPE_bytes = 256 * 1024
_TAGS = {name for union in (AnyTechnique, AnyExport, AnyEvaluator, AnyLoss) for name in tags(union)} | {"change"}


class Recipe(Frozen):
    """A frozen, versioned plan. Equal recipes with equal pinned sources give equal artifacts."""

    version: Literal[1] = 1
    """Version of this document's form."""
    name: Label | None = None
    """A label for people."""
    model: ModelRef
    calibration: Calibration = Calibration()
    objective: Objective | None = Field(default=None, exclude_if=lambda value: value is None)
    """A goal: candidate chains are tried, and the best one that meets it is the result."""
    sweep: Sweep = Field(default={}, max_length=8, exclude_if=lambda value: not value)
    """Values to try for fields of this recipe, by JSON Pointer such as `/chain/0/scheme`: every combination is a
    candidate."""
    chain: tuple[AnyTechnique, ...] = Field(default=(), max_length=MAX_ENTRIES, validate_default=True)
    """Techniques in the order in which they are applied; at least one. With an `objective`, what all its candidates
    begin with, which may be nothing."""
    target: AnyExport = CompressedTensors()
    """The format to write."""
    also: tuple[AnyExport, ...] = Field(default=(), max_length=8)
    """More formats, written from the same quantized checkpoint. Each lands in `also/<scheme>-<format>/`."""
    evaluate: tuple[AnyEvaluator, ...] = Field(default=(Fidelity(), Throughput()), max_length=8)
    """What to measure before and after."""
    publish: Publish | None = None
    hardware: Hardware = Hardware()
    limits: Limits = Limits()
    priority: int = Field(default=0, ge=-10, le=10)
    """Among the jobs that wait, higher ones are run first."""
    metadata: dict[Label, Annotated[str, StringConstraints(max_length=500)]] = Field(default={}, max_length=32)
    """Free labels, for the user's own bookkeeping."""
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def is_race(self) -> bool:
        """Whether it stands for several chains, of which one is the result."""
        return self.objective is not None or bool(self.sweep)

    @field_validator("chain")
    @classmethod
    def _something_to_do(cls, chain: tuple[AnyTechnique, ...], info: ValidationInfo) -> tuple[AnyTechnique, ...]:
        """An objective that is wrong itself is said by its own error alone."""
        if not chain and info.data.get("objective", ...) is None:
            raise PydanticCustomError("no_chain", "List should have at least 1 technique")
        return chain

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest_of(self)

    def to_yaml(self) -> str:
        """The recipe as YAML, defaults filled in, that `parse_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file. Raises `RecipeError` that names the field and the remedy."""
    return recipe_from(load_document(path))


def load_document(path: str | Path) -> Any:
    """What a recipe file holds, not yet judged. Raises `RecipeError` for what cannot be read."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_bytes:
            raise RecipeError(f"{path} is larger than a recipe can be ({MAX_RECIPE_bytes} bytes)")
        return read_document(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}", remedy="give the path of a YAML recipe") from error


def parse_recipe(text: str) -> Recipe:
    """Read a recipe from YAML (or JSON, which is YAML). Raises `RecipeError`."""
    return recipe_from(read_document(text))


def recipe_from(document: Any) -> Recipe:
    """Validate a plain document. Raises `RecipeError` whose `field` is a JSON Pointer to the first problem."""
    if not isinstance(document, dict):
        raise RecipeError(f"a recipe is a mapping, got {type(document).__name__}", remedy="see docs/recipes")
    try:
        text = canonical_json(document)
        if r"\u0000" in text and _has_nul(document):
            raise RecipeError("a recipe is text, and this one holds a NUL character", remedy="remove it")
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        causes = root_causes(error)
        first, more = causes[0], len(causes) - 1
        field = pointer(first["loc"])
        message = f"{field or '/'}: {reason(first)}" + (f" (and {more} more)" if more else "")
        raise RecipeError(message, field=field, remedy=_remedy(first["type"])) from error
    except (TypeError, ValueError) as error:
        raise RecipeError(f"not a JSON document: {error}", remedy="use strings, numbers, lists and mappings") from error


def root_causes(error: ValidationError) -> list[ErrorDetails]:
    """A validation's errors, misspelt keys first, without those that only follow from an error further in.

    A misspelt key is also a missing one, and a list with a bad item is also too short.
    """
    found = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    outer = {e["loc"][:depth] for e in found for depth in range(len(e["loc"]))}
    return [e for e in found if e["loc"] not in outer]


def reason(detail: ErrorDetails) -> str:
    """What one error says, without pydantic's prefix."""
    return detail["msg"].removeprefix("Value error, ")


def pointer(location: tuple[int | str, ...]) -> str:
    """JSON Pointer (RFC 6901) of a pydantic error location, without the union tags that pydantic inserts."""
    kept = [part for before, part in zip((None, *location), location, strict=False) if not _is_tag(before, part)]
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in kept)


def _is_tag(before: int | str | None, part: int | str) -> bool:
    """Tags follow an index of a list of variants, or the target."""
    return isinstance(part, str) and (isinstance(before, int) or before == "target") and part in _TAGS


def _has_nul(value: Any) -> bool:
    """PostgreSQL and file systems cannot hold one."""
    if isinstance(value, dict):
        return any(map(_has_nul, (*value.keys(), *value.values())))
    return any(map(_has_nul, value)) if isinstance(value, list) else isinstance(value, str) and "\x00" in value


def _remedy(error_type: str) -> str:
    return {
        "extra_forbidden": "remove this key or correct its spelling; see `lathe schema`",
        "missing": "add this key",
        "no_chain": "name a technique, or give an `objective` in the place of a chain",
        "union_tag_invalid": "use one of the listed names",
        "union_tag_not_found": "add the key that says which kind this is (`technique`, `format` or `evaluator`)",
    }.get(error_type, "correct the value; see `lathe schema`")
