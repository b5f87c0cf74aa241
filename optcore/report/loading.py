"""What a reader types to load a result from where it is published."""

import json
import shlex

from optcore.references import Place
from optcore.report.model import Task

_LOAD = """from transformers import {auto}, AutoTokenizer

name = {name}
model = {auto}.from_pretrained(name, {revision}device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(name{comma_revision})
"""
_LOAD_A_FOLDER = """from huggingface_hub import snapshot_download
from transformers import {auto}, AutoTokenizer

name = snapshot_download({name}, revision={revision}, allow_patterns={pattern}) + {below}
model = {auto}.from_pretrained(name, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained(name)
"""
DECODE = """from pathlib import Path

from optcore.export.compact_decoder import decode

decode(Path("path/to/this/folder"), Path("plain"))  # a folder that transformers loads
"""
"""What a reader types to have the plain checkpoint of a compact one."""

_CLASSES: dict[Task, str] = {
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
}


def loading_commands(place: Place | None, task: Task = "text-generation") -> tuple[str, str]:
    """Python for transformers, and a command line for vLLM; for a folder on a disk when it is published nowhere."""
    if place and place.folder:
        return _of_a_folder(place, task)
    name, branch = (place.repo_id, place.branch) if place else ("path/to/this/folder", "main")
    revision = "" if branch == "main" else f"revision={json.dumps(branch)}"
    python = _LOAD.format(
        auto=_CLASSES[task],
        name=json.dumps(name),
        revision=revision and f"{revision}, ",
        comma_revision=revision and f", {revision}",
    )
    return python, f"vllm serve {shlex.quote(name)}{revision and f' --revision {shlex.quote(branch)}'}\n"


def _of_a_folder(place: Place, task: Task) -> tuple[str, str]:
    pattern, local = f"{place.folder}/*", place.repo_id.rpartition("/")[2]
    python = _LOAD_A_FOLDER.format(
        auto=_CLASSES[task],
        name=json.dumps(place.repo_id),
        revision=json.dumps(place.branch),
        pattern=json.dumps(pattern),
        below=json.dumps(f"/{place.folder}"),
    )
    wanted = f"--revision {shlex.quote(place.branch)} --include {shlex.quote(pattern)}"
    download = f"hf download {shlex.quote(place.repo_id)} {wanted} --local-dir {shlex.quote(local)}"
    return python, f"{download}\nvllm serve {shlex.quote(f'{local}/{place.folder}')}\n"
