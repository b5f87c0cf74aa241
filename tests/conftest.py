"""What every test has: a quiet environment and the fixtures of `tests/fixtures`."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from optcore.gpus import visible_gpus

# Before anything imports torch or huggingface_hub, which read these once. Children of tests inherit them.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody listens: a test that needs a Hub starts its own
os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="lathe-hf-")
if not visible_gpus():  # triton reads it once too: without a GPU its interpreter runs kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")
# Hundreds of short processes are started, and each would compile the same modules again.
sys.dont_write_bytecode = False
for _name in (
    "PYTHONDONTWRITEBYTECODE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
):
    os.environ.pop(_name, None)

# A shell that starts us in the background has us ignore it, and our children would too, whose end by it is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "fixtures.artifacts",
    "fixtures.s3",
    "fixtures.servers",
    "fixtures.browser",
    "fixtures.hub",
    "fixtures.keys",
    "fixtures.receiver",
    "fixtures.service",
    "fixtures.tiny_models",
    "fixtures.classifiers",
    "fixtures.exporting",
    "fixtures.served",
    "fixtures.training_stages",
    "fixtures.package_texts",
    "fixtures.whole_runs",
    "fixtures.small_recipes",
]

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def stdlib_model() -> Path:
    """The small real model that ships in the repository."""
    return ROOT / "models" / "stdlib-5m"
