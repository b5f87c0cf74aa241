"""ONNX Runtime GenAI on the CPU: the folder's `genai_config.json` says how the graph is driven.

Python API: https://onnxruntime.ai/docs/genai/api/python.html
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og

from optcore.serving.session import ServingTask


class Session:
    """A decoder with its KV cache."""

    def __init__(self, folder: Path, task: ServingTask) -> None:
        config = og.Config(str(folder))
        config.clear_providers()  # the CPU is what is left
        options = {"intra_op_num_threads": task.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self._params = og.GeneratorParams(self._model)
        # The end token is put off, so that as many tokens are timed as were asked for; one more than they are, since
        # a generator that is full computes nothing.
        length = task.longest + 1
        self._params.set_search_options(max_length=length, min_length=length, do_sample=False, num_beams=1)
        self._generator = og.Generator(self._model, self._params)

    def fill(self, ids_T: np.ndarray) -> None:
        """Process a prompt in an empty cache and choose the likeliest next token."""
        self._generator = og.Generator(self._model, self._params)
        self._generator.append_tokens(ids_T.astype(np.int32))
        self._generator.generate_next_token()

    def step(self) -> None:
        """Process the chosen token and choose the next."""
        self._generator.generate_next_token()

    def logits(self, ids_T: np.ndarray) -> np.ndarray:
        """Predictions at every position, float32 [T, V]."""
        generator = og.Generator(self._model, self._params)
        generator.append_tokens(ids_T.astype(np.int32))
        logits_BTV = generator.get_output("logits")
        return logits_BTV[0].astype(np.float32)
