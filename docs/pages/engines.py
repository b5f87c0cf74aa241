"""The page of targets and engines, from the matrix that recipes are checked against."""

from docs.pages.markdown import codes, table
from optcore.engines import ENGINES, MATRIX, Family, Support
from optcore.export import AnyExport
from optcore.frozen import members, tag

_WORDS = {"yes": "yes", "conditional": "with a condition", "no": "no"}
_FAMILIES: dict[tuple[Family, ...], str] = {
    ("dense",): " (dense models)",
    ("moe", "fused_moe"): " (mixture of experts)",
    ("dense", "moe"): " (experts stored one by one, or none)",
    ("fused_moe",): " (experts stored as one tensor)",
}


def engines_page() -> str:
    """Which engine loads which number format from which target."""
    releases = table(("Engine", "Release"), ((f"`{name}`", release) for name, release in ENGINES.items()))
    sections = "\n".join(_section(tag(target)) for target in members(AnyExport))
    return f"""# Targets and engines

What an engine makes of the number formats in each target. A recipe is checked against this table before any work: one
whose formats no engine loads is refused, with the nearest combination that works. `engine` in the target asks for a
particular one:

```yaml
target: {{format: modelopt, engine: tensorrt-llm}}
```

What no row names, no engine loads. *Seen* is how we know: `run`, a checkpoint of ours was loaded and computed the
simulated model's numbers, or was refused; `read`, it says so in the engine's loader.

{releases}

{sections}"""


def _section(target: str) -> str:
    rows = [_row(row) for row in MATRIX if row.target == target]
    return f"## `{target}`\n\n{table(('Engine', 'Formats', 'Loads', 'Notes', 'Seen'), rows)}\n"


def _row(row: Support) -> tuple[str, ...]:
    formats = codes(name.replace("kv:", "kv_cache: ") for name in row.formats)
    loads = f"{_WORDS[row.loads]}{_FAMILIES.get(row.families, '')}"
    return f"`{row.engine}`", formats, loads, row.note, row.evidence
