"""The recipe: model, chain of techniques, target. One definition for YAML, REST, SDK, database and docs."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from optcore.errors import RecipeError
from optcore.evaluate import AnyEvaluator, Fidelity, Throughput
from optcore.export import AnyExport, CompressedTensors
from optcore.frozen import Frozen, canonical_json, digest_of, tags
from optcore.techniques import AnyTechnique
from optcore.yaml_text import read_document

MAX_RECIPE_bytes = 256 * 1024
_TAGS = {name for union in (AnyTechnique, AnyExport, AnyEvaluator) for name in tags(union)}

BUILT_IN = "python-stdlib"
"""The data set that every machine has."""

RepoId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$", max_length=96)]
Revision = Annotated[str, StringConstraints(pattern=r"^[\w][\w./-]*$", max_length=200)]
LocalPath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ModelRef(Frozen):
    """The model to start from: a Hub repository, or a folder on the worker."""

    id: RepoId | None = None
    """Hub repository, such as `Qwen/Qwen3-8B`."""
    revision: Revision = "main"
    """Branch, tag or commit; pinned to the commit when the job starts."""
    path: LocalPath | None = None
    """Folder on the machine that runs the engine, instead of `id`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.id is None) == (self.path is None):
            raise ValueError("give exactly one of `id` (a Hub repository) and `path` (a folder)")
        return self

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.id else str(self.path)


class Calibration(Frozen):
    """Text that activation statistics are measured on, and that evaluation text is held out from."""

    dataset: Annotated[str, StringConstraints(max_length=96)] = "cnn_dailymail"
    """Hub data set, or `python-stdlib`: the Python standard library's sources, which need no network."""
    revision: Revision = "main"
    """Branch, tag or commit of a Hub data set; pinned to the commit when the job starts."""
    subset: Annotated[str, StringConstraints(max_length=200)] | None = None
    """Configuration of a Hub data set; the first one that has files when absent."""
    column: Annotated[str, StringConstraints(max_length=200)] | None = None
    """Text column of a JSON lines, CSV or Parquet file; when absent `text`, `article`, `content` or the only one."""
    path: LocalPath | None = None
    """File (`.txt`, `.jsonl`, `.csv`, `.parquet`) on the machine that runs the engine, instead of `dataset`."""
    samples: int = Field(default=512, ge=1, le=100_000)
    """Windows of text."""
    sequence_length: int = Field(default=2048, ge=2, le=131_072)
    """Tokens a window; cut to what the model can hold."""


class Publish(Frozen):
    """Where the finished checkpoint goes on the Hub. The engine ignores it: the service publishes."""

    repo_id: RepoId
    private: bool = True
    credential: Label = "default"
    """Name of a stored Hub credential; never the token itself."""
    revision: Revision = "main"
    """Branch to publish to; made when absent."""


class Recipe(Frozen):
    """A frozen, versioned plan. Equal recipes with equal pinned sources give equal artifacts."""

    version: Literal[1] = 1
    """Version of this document's form."""
    name: Label | None = None
    """A label for people."""
    model: ModelRef
    calibration: Calibration = Calibration()
    chain: tuple[AnyTechnique, ...] = Field(min_length=1, max_length=16)
    """Techniques in the order in which they are applied."""
    target: AnyExport = CompressedTensors()
    """The format to write."""
    evaluate: tuple[AnyEvaluator, ...] = (Fidelity(), Throughput())
    """What to measure before and after."""
    publish: Publish | None = None
    metadata: dict[Label, Annotated[str, StringConstraints(max_length=500)]] = Field(default={}, max_length=32)
    """Free labels, for the user's own bookkeeping."""
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return digest_of(self)

    def to_yaml(self) -> str:
        """The recipe as YAML, defaults filled in, that `parse_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file. Raises `RecipeError` that names the field and the remedy."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_bytes:
            raise RecipeError(f"{path} is larger than a recipe can be ({MAX_RECIPE_bytes} bytes)")
        return parse_recipe(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read {path}: {error}", remedy="give the path of a YAML recipe") from error


def parse_recipe(text: str) -> Recipe:
    """Read a recipe from YAML (or JSON, which is YAML). Raises `RecipeError`."""
    return recipe_from(read_document(text))


def recipe_from(document: Any) -> Recipe:
    """Validate a plain document. Raises `RecipeError` whose `field` is a JSON Pointer to the first problem."""
    if not isinstance(document, dict):
        raise RecipeError(f"a recipe is a mapping, got {type(document).__name__}", remedy="see docs/recipes")
    if _has_nul(document):
        raise RecipeError("a recipe is text, and this one holds a NUL character", remedy="remove it")
    try:
        return Recipe.model_validate_json(canonical_json(document))
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
    found = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    return [e for e in found if not any(e is not o and o["loc"][: len(e["loc"])] == e["loc"] for o in found)]


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
        "union_tag_invalid": "use one of the listed names",
        "union_tag_not_found": "add the key that says which kind this is (`technique`, `format` or `evaluator`)",
    }.get(error_type, "correct the value; see `lathe schema`")
