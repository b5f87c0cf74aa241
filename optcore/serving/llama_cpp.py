"""llama.cpp on the CPU, as its shared library is called from C; nothing is kept per position that is not asked for.

Functions: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

import sys
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as lib

from optcore.serving.session import ServingTask

FILE = "model.gguf"
_WARNING, _ERROR = 3, 4  # of ggml_log_level; the Python package has them in an older order, and hides errors

_errors: list[str] = []
"""What it said of its failures, which its functions do not: an exception repeats it, or memory would be missed."""


@lib.llama_log_callback
def _log(level: int, text: bytes, _: object) -> None:
    said = text.decode(errors="replace")
    if level in (_WARNING, _ERROR):
        sys.stderr.write(said)
    if level == _ERROR:
        _errors.append(said.strip())


class Session:
    """A GGUF file; its KV cache is in float16, as llama.cpp has it by default."""

    def __init__(self, folder: Path, task: ServingTask) -> None:
        lib.llama_log_set(_log, None)
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        # The library frees both when the process ends.
        self._model = lib.llama_model_load_from_file(str(folder / FILE).encode(), model_params)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {FILE}: {_errors}")
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = task.longest
        params.n_threads = params.n_threads_batch = task.threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError(f"llama.cpp makes no context of {task.longest} tokens for {FILE}: {_errors}")
        self._vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model)))
        self._batch = lib.llama_batch_init(task.longest, 0, 1)
        self._filled, self._next = 0, 0

    def fill(self, ids_T: np.ndarray) -> None:
        """Process a prompt in an empty cache and choose the likeliest next token."""
        self._clear()
        self._next = int(self._decode(ids_T, outputs=1)[-1].argmax())

    def step(self) -> None:
        """Process the chosen token and choose the next."""
        self._next = int(self._decode(np.array([self._next]), outputs=1)[-1].argmax())

    def logits(self, ids_T: np.ndarray) -> np.ndarray:
        """Predictions at every position, float32 [T, V]."""
        self._clear()
        return self._decode(ids_T, outputs=len(ids_T)).copy()

    def _clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._filled = 0

    def _decode(self, ids_T: np.ndarray, outputs: int) -> np.ndarray:
        """Logits [outputs, V] of the last tokens, in memory that is llama.cpp's until the next call."""
        batch, count = self._batch, len(ids_T)
        batch.n_tokens = count
        for index, token in enumerate(ids_T):
            batch.token[index] = int(token)
            batch.pos[index] = self._filled + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= count - outputs
        if status := lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode ended with status {status}: {_errors}")
        self._filled += count
        return np.ctypeslib.as_array(lib.llama_get_logits(self._context), (outputs, self._vocabulary))
