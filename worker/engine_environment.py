"""The environment of an engine process: an allow-list, so that a secret added later stays out by default."""

import os
from collections.abc import Mapping

_NAMES = frozenset(
    """PATH HOME USER LANG LANGUAGE TZ TMPDIR LD_LIBRARY_PATH PYTHONPATH PYTHONUNBUFFERED VIRTUAL_ENV XDG_CACHE_HOME
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HF_HOME HF_HUB_CACHE HF_ENDPOINT
    HF_HUB_OFFLINE HF_HUB_DISABLE_XET HF_XET_CACHE HF_HUB_ETAG_TIMEOUT HF_HUB_DOWNLOAD_TIMEOUT""".split()  # noqa: SIM905
)
_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "MKL_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def run_environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """For `optcore run`: no credential, no address of a server of ours, no token file of the operator's account."""
    source = os.environ if source is None else source
    kept = {name: value for name, value in source.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return kept | {
        "PYTHONUNBUFFERED": "1",
        # Without these the Hub client would lend the operator's own login to every tenant's download.
        "HF_TOKEN_PATH": os.devnull,
        "HF_STORED_TOKENS_PATH": os.devnull,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def fetch_environment(token: str | None, source: Mapping[str, str] | None = None) -> dict[str, str]:
    """For `optcore fetch`: the above, the proxies of the host, and the job owner's Hub token if there is one."""
    source = os.environ if source is None else source
    proxies = {name: value for name, value in source.items() if name.upper() in _PROXIES}
    return run_environment(source) | proxies | ({"HF_TOKEN": token} if token else {})
