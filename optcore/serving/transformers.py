"""transformers on the CPU, in the types that the checkpoint has; formats are unpacked or imitated."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DynamicCache,
)

from optcore.serving.session import ServingTask

_CLASSES = {
    "text-generation": AutoModelForCausalLM,
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": AutoModelForSequenceClassification,
}


class Session:
    """A checkpoint of safetensors; code that lies in the folder is never run."""

    def __init__(self, folder: Path, task: ServingTask) -> None:
        torch.set_num_threads(task.threads)
        self._generates = task.kind == "text-generation"
        load = _CLASSES[task.kind].from_pretrained
        self._model = load(folder, trust_remote_code=False, local_files_only=True, use_safetensors=True).eval()
        self._cache, self._next_BT = None, torch.zeros(1, 1, dtype=torch.long)
        # As `generate` does: only the last position's logits are computed of a prompt, where the model's code can.
        self._only_last = {"logits_to_keep": 1} if self._generates and self._model._supports_logits_to_keep() else {}

    @torch.no_grad()
    def fill(self, ids_T: np.ndarray) -> None:
        """Process a prompt in an empty cache and choose the likeliest next token."""
        ids_BT = torch.from_numpy(ids_T)[None]
        if not self._generates:
            self._model(ids_BT)
            return
        self._cache = DynamicCache(config=self._model.config)
        self._next_BT = self._model(ids_BT, past_key_values=self._cache, **self._only_last).logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def step(self) -> None:
        """Process the chosen token and choose the next."""
        self._next_BT = self._model(self._next_BT, past_key_values=self._cache).logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def logits(self, ids_T: np.ndarray) -> np.ndarray:
        """Predictions, float32 [T, V], or of a classifier [1, V]."""
        logits_BPV = self._model(torch.from_numpy(ids_T)[None]).logits
        return logits_BPV.float().reshape(-1, logits_BPV.shape[-1]).numpy()
