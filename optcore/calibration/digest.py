"""A fingerprint of a simulated weight, by which every later reader of its bytes is held to it."""

import hashlib

import torch


def weight_digest(weight_NK: torch.Tensor) -> str:
    """SHA-256 of a float32 weight's bytes; minus zero counts as zero, which formats without one cannot tell apart."""
    return hashlib.sha256((weight_NK.float() + 0.0).contiguous().cpu().numpy()).hexdigest()
