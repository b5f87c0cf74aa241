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

_GENERATE = """import onnxruntime_genai as og

name = {name}
model = og.Model(name)
tokenizer = og.Tokenizer(model)
"""
_RUN = """import onnxruntime as ort
from transformers import AutoTokenizer

name = {name}
session = ort.InferenceSession(name + "/model.onnx")
tokenizer = AutoTokenizer.from_pretrained(name)
"""
NOT_TRANSFORMERS = ("gguf", "onnx", "modelopt")
"""Targets that transformers does not read, or reads wrong without an error."""
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


def engine_commands(target: str, place: Place | None, task: Task) -> tuple[str, str, str]:
    """The engine that a target is for, the language of the commands, and the commands."""
    download, folder = _downloaded(place)
    if target == "gguf":
        return "llama.cpp", "shell", f"{download}llama-server --model {shlex.quote(f'{folder}/model.gguf')}\n"
    if target == "modelopt":
        return "TensorRT-LLM", "shell", f"{download}trtllm-serve {shlex.quote(folder)}\n"
    fetched = f"# first: {download}" if download else ""
    if task == "text-generation":
        return "ONNX Runtime", "python", fetched + _GENERATE.format(name=json.dumps(folder))
    return "ONNX Runtime", "python", fetched + _RUN.format(name=json.dumps(folder))


def _downloaded(place: Place | None) -> tuple[str, str]:
    """A command that brings a published result here, and where it then lies."""
    if place is None:
        return "", "path/to/this/folder"
    local = place.repo_id.rpartition("/")[2]
    revision = "" if place.branch == "main" else f" --revision {shlex.quote(place.branch)}"
    below = f" --include {shlex.quote(f'{place.folder}/*')}" if place.folder else ""
    command = f"hf download {shlex.quote(place.repo_id)}{revision}{below} --local-dir {shlex.quote(local)}\n"
    return command, f"{local}/{place.folder}" if place.folder else local


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
