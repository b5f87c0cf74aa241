"""The environment of an engine process: an allow-list, so that a secret added later stays out by default.

Its home and its caches lie below the work folder of a project: compiled kernels and downloads are not shared by two.
"""

import os
from collections.abc import Mapping
from pathlib import Path

_NAMES = frozenset(
    """PATH USER LANG LANGUAGE TZ TMPDIR LD_LIBRARY_PATH PYTHONPATH PYTHONUNBUFFERED VIRTUAL_ENV
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HF_ENDPOINT
    HF_HUB_OFFLINE HF_HUB_DISABLE_XET HF_HUB_ETAG_TIMEOUT HF_HUB_DOWNLOAD_TIMEOUT""".split()  # noqa: SIM905
)
_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "MKL_")
_PRIVATE = {
    "HOME": "home",
    "XDG_CACHE_HOME": "cache",
    "HF_HOME": "cache/huggingface",
    "TORCH_HOME": "cache/torch",
    "TORCH_EXTENSIONS_DIR": "cache/torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "cache/inductor",
    "TRITON_CACHE_DIR": "cache/triton",
    "CUDA_CACHE_PATH": "cache/cuda",
}
"""Below a project's work folder."""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def run_environment(work: Path, source: Mapping[str, str] | None = None) -> dict[str, str]:
    """For `optcore run`: no credential, no address of a server of ours, no token file of the operator's account."""
    source = os.environ if source is None else source
    kept = {name: value for name, value in source.items() if name in _NAMES or name.startswith(_PREFIXES)}
    private = {name: str(work / folder) for name, folder in _PRIVATE.items()}
    return (
        kept
        | private
        | {
            "PYTHONUNBUFFERED": "1",
            # Without these the Hub client would lend the operator's own login to every tenant's download.
            "HF_TOKEN_PATH": os.devnull,
            "HF_STORED_TOKENS_PATH": os.devnull,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
    )


def fetch_environment(work: Path, token: str | None, source: Mapping[str, str] | None = None) -> dict[str, str]:
    """For `optcore fetch`: the above, the proxies of the host, and the job owner's Hub token if there is one."""
    source = os.environ if source is None else source
    proxies = {name: value for name, value in source.items() if name.upper() in _PROXIES}
    return run_environment(work, source) | proxies | ({"HF_TOKEN": token} if token else {})
