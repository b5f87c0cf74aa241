"""The YAML head of the model card, by which the Hub files a model.

https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from collections.abc import Iterator

import yaml

from optcore.manifest import Parent
from optcore.report.model import Report

_LIBRARIES = {"gguf": "gguf", "onnx": "onnx", "modelopt": "Model Optimizer", "compact": "lathe"}
"""What loads a target, where that is not transformers."""
_CONVERSIONS = ("gguf", "onnx")
"""The Hub calls a model in another engine's format quantized, whatever its numbers are."""


def front_matter(report: Report, owner: str) -> str:
    """The head between its two lines of dashes; `owner` is whose repository the result goes to, empty where it goes
    nowhere. Nothing is claimed that is not known."""
    base = list(dict.fromkeys(_bases(report.lineage))) or ([report.base_model] if report.base_model else [])
    relation = _relation(report)
    fields = {
        "base_model": base[0] if len(base) == 1 else base,
        "base_model_relation": relation if base else "",
        "license": report.license,
        "license_name": report.license_name,
        "license_link": report.license_link,
        "language": list(report.language),
        "library_name": _LIBRARIES.get(report.target, "transformers"),
        "pipeline_tag": report.task,
        "tags": list(dict.fromkeys(["lathe", report.target, *report.schemes])),
        "quantized_by": owner if relation == "quantized" else "",
    }
    known = {name: value for name, value in fields.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def _bases(parents: tuple[Parent, ...]) -> Iterator[str]:
    """Hub repositories whose weights these are: of a source that is a result of ours on a disk, what that was made of.
    Where a student took the source's place, they are the student's."""
    roles = ("student", "merged") if any(each.role == "student" for each in parents) else ("source", "merged")
    for each in parents:
        if each.role in roles:
            yield from [each.name] if each.revision else _bases(each.parents)


def _relation(report: Report) -> str:
    if report.schemes or report.coverage or report.target in _CONVERSIONS:
        return "quantized"
    return "merge" if any(each.role == "merged" for each in report.lineage) else "finetune"
