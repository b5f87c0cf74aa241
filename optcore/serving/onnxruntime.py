"""ONNX Runtime on the CPU: the graph of an encoder, whose outputs are the logits.

Python API: https://onnxruntime.ai/docs/api/python/api_summary.html
"""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from optcore.serving.session import ServingTask

FILE = "model.onnx"
_INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class Session:
    """One text at a time, all of it looked at."""

    def __init__(self, folder: Path, task: ServingTask) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = task.threads
        self._session = ort.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
        self._inputs = {node.name: _INTEGERS[node.type] for node in self._session.get_inputs()}

    def fill(self, ids_T: np.ndarray) -> None:
        """Process a text."""
        self.logits(ids_T)

    def step(self) -> None:
        """Raises: an encoder has no next token."""
        raise NotImplementedError("an encoder does not generate")

    def logits(self, ids_T: np.ndarray) -> np.ndarray:
        """Predictions, float32 [T, V], or of a classifier [1, V]."""
        known = {
            "input_ids": ids_T,
            "attention_mask": np.ones_like(ids_T),
            "token_type_ids": np.zeros_like(ids_T),
            "position_ids": np.arange(len(ids_T)),
        }
        given = {name: known[name][None].astype(dtype) for name, dtype in self._inputs.items()}
        logits_BPV: np.ndarray = self._session.run(["logits"], given)[0]
        return logits_BPV.reshape(-1, logits_BPV.shape[-1]).astype(np.float32)
