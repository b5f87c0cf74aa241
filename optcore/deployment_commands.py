"""What a user types in a result's folder to have an engine serve it.

From the engines' own pages: https://docs.vllm.ai/en/latest/configuration/engine_args/,
https://docs.sglang.io/advanced_features/server_arguments.html,
https://nvidia.github.io/TensorRT-LLM/latest/commands/trtllm-serve.html,
https://nvidia.github.io/TensorRT-LLM/commands/trtllm-bench.html,
https://github.com/ggml-org/llama.cpp/tree/master/tools/server, https://onnxruntime.ai/docs/genai/api/python.html.
"""

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from optcore.export.base import EngineName
from optcore.report import Setting, Task

_SHARED_OUT = ("--tensor-parallel-size", "tensor_parallel_size")
"""Numbers of GPUs to choose among: a command has the default, one."""
_CONVERT = "python convert_hf_to_gguf.py . --outfile model.gguf"
_BUILDER = {
    "dense": "-p fp32 -e cpu",
    "awq": "-p int4 -e cpu --extra_options shared_embeddings=false",
    "gptq": "-p int4 -e cpu --extra_options shared_embeddings=false",
}
"""What its builder is asked for by target; what else it loads needs a CUDA build, and a choice of its precision."""
_GENERATE = """import onnxruntime_genai as og

model = og.Model("{folder}")
tokenizer = og.Tokenizer(model)
params = og.GeneratorParams(model)
params.set_search_options(max_length=256)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("Once upon a time"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))"""
_ENCODE = """import onnxruntime
from transformers import AutoTokenizer

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
tokens = AutoTokenizer.from_pretrained(".")("A sentence.", return_tensors="np")
known = {given.name for given in session.get_inputs()}
print(session.run(None, {name: value for name, value in tokens.items() if name in known})[0])"""
_TRANSFORMERS = """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained(".", device_map="auto", attn_implementation="sdpa")
tokenizer = AutoTokenizer.from_pretrained(".")"""
_AUTO: dict[Task, str] = {
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
}


def commands(
    engine: EngineName, target: str, settings: Iterable[Setting], task: Task = "text-generation"
) -> tuple[str, ...]:
    """Shell commands, or one piece of Python, in the order in which they are typed; none where a choice is open."""
    chosen = tuple(setting for setting in settings if setting.name not in _SHARED_OUT)
    if engine == "vllm":
        return (f"vllm serve .{_flags(chosen)}",)
    if engine == "sglang":
        return (f"python -m sglang.launch_server --model-path .{_flags(chosen)}",)
    if engine == "tensorrt-llm":
        return tuple(_tensorrt(chosen))
    if engine == "llama.cpp":
        return (*([] if target == "gguf" else [_CONVERT]), *_llama_cpp(chosen))
    if engine == "transformers":
        return (_TRANSFORMERS.format(auto=_AUTO[task]),)
    return (_ENCODE,) if engine == "onnxruntime" else _genai(target)


def _flags(settings: Iterable[Setting]) -> str:
    found = (" ".join([one.name, *([shlex.quote(one.value)] if one.value else [])]) for one in settings)
    return "".join(f" \\\n  {flag}" for flag in found)


def _tensorrt(settings: Iterable[Setting]) -> Iterator[str]:
    """Its PyTorch backend reads the checkpoint itself: no engine is built."""
    tree: dict[str, Any] = {}
    for setting in settings:
        *folders, leaf = setting.name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = yaml.safe_load(setting.value)
    yield f"cat > trtllm.yaml <<'END'\n{yaml.safe_dump(tree, sort_keys=False)}END"
    yield "trtllm-serve . --backend pytorch --config trtllm.yaml"
    measured = "throughput --backend pytorch --config trtllm.yaml --dataset requests.jsonl"
    yield f"trtllm-bench --model . --model_path . {measured}"


def _llama_cpp(settings: Iterable[Setting]) -> Iterator[str]:
    yield f"llama-server -m model.gguf{_flags(settings)}"
    yield 'llama-cli -m model.gguf -n 128 -p "Once upon a time"'


def _genai(target: str) -> tuple[str, ...]:
    if target == "onnx":
        return (_GENERATE.format(folder="."),)
    if target not in _BUILDER:
        return ()
    return (
        f"python -m onnxruntime_genai.models.builder -i . -o onnx {_BUILDER[target]}",
        _GENERATE.format(folder="onnx"),
    )
