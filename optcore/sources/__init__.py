"""Bringing the model and its calibration text to this machine, pinned and checked, without torch."""

from optcore.sources.datasets import FetchedData, fetch_data, fetch_file
from optcore.sources.models import FetchedModel, fetch_model
from optcore.sources.texts import Labelled, read_labelled, read_texts

__all__ = [
    "FetchedData",
    "FetchedModel",
    "Labelled",
    "fetch_data",
    "fetch_file",
    "fetch_model",
    "read_labelled",
    "read_texts",
]
