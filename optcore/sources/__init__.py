"""Bringing the model and its calibration text to this machine, pinned and checked, without torch."""

from optcore.sources.datasets import FetchedData, fetch_data
from optcore.sources.models import FetchedModel, fetch_model
from optcore.sources.texts import read_texts

__all__ = ["FetchedData", "FetchedModel", "fetch_data", "fetch_model", "read_texts"]
