"""Which recipe of which quantizer stands in which line of the table, and how a row is run once and kept."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers.venvs import PEERS, REQUIREMENTS, ROOT

RUNNERS = {
    "ours": "with_optcore",
    "modelopt": "with_modelopt",
    "llm-compressor": "with_llm_compressor",
    "torchao": "with_torchao",
    "auto-round": "with_auto_round",
}
SHARED = ("job", "score")
_OURS = ("algorithms", "calibration", "export", "streaming", "techniques", "quantization.py", "schemes.py")
LIMIT_seconds = 1800
"""A row takes a minute on a quiet machine; this is for one that many share."""
NO_RESULT = "no result"


@dataclass(frozen=True)
class Row:
    """One quantizer's recipe for one number format."""

    format: str
    """What is compared: our scheme's name, `kv_` and a cache format, or `auto_` and bits a weight."""
    peer: str
    recipe: str
    """In the runner's words."""
    role: Literal["default", "nearest", "peer"] = "peer"
    """Ours are our default recipe and plain rounding to nearest; everything else is a peer's."""

    @property
    def name(self) -> str:
        """Such as `llm-compressor gptq W4A16`."""
        return f"{self.peer} {self.recipe}"

    @property
    def has_stand_in(self) -> bool:
        """Whether modelopt runs its block formats on our plain-torch kernels, so that its seconds say nothing."""
        return self.peer == "modelopt" and any(part in self.recipe for part in ("NVFP4", "MXFP", "auto"))


def _rows(format_: str, **recipes: str | tuple[str, ...]) -> Iterator[Row]:
    """Ours with every format, then the peers'; a peer's name is written with underscores."""
    yield Row(format_, "ours", f"default {format_}", "default")
    if not format_.startswith(("kv_", "auto_")):
        yield Row(format_, "ours", f"nearest {format_}", "nearest")
    for peer, several in recipes.items():
        for recipe in (several,) if isinstance(several, str) else several:
            yield Row(format_, peer.replace("_", "-"), recipe)


ROWS = (
    *_rows("fp8", modelopt="FP8_DEFAULT_CFG", llm_compressor="rtn FP8"),
    *_rows(
        "fp8_dynamic",
        modelopt="FP8_PER_CHANNEL_PER_TOKEN_CFG",
        llm_compressor="rtn FP8_DYNAMIC",
        torchao="fp8-dynamic",
    ),
    *_rows("fp8_block", llm_compressor="rtn FP8_BLOCK"),
    *_rows("int8_w8a16", modelopt="INT8_WEIGHT_ONLY_CFG", torchao="int8-weight"),
    *_rows("int8", llm_compressor=("rtn W8A8", "sq+rtn W8A8", "sq+gptq W8A8"), torchao="int8-dynamic"),
    *_rows("int8_static", modelopt="INT8_SMOOTHQUANT_CFG"),
    *_rows(
        "int4",
        modelopt="INT4_AWQ_CFG",
        llm_compressor=("awq W4A16", "gptq W4A16"),
        torchao="int4-g128",
        auto_round="W4A16 50",
    ),
    *_rows(
        "int4_asym",
        llm_compressor=("awq W4A16_ASYM", "gptq W4A16_ASYM"),
        torchao="int4-g128-asym",
    ),
    *_rows(
        "int4_g32",
        llm_compressor="gptq W4A16-g32",
        torchao="int4-g32",
        auto_round="W4A16G32 50",
    ),
    *_rows("int4_fp8", modelopt="W4A8_AWQ_BETA_CFG", llm_compressor="gptq W4AFP8"),
    *_rows(
        "nvfp4_w4a16",
        modelopt=(
            "W4A16_NVFP4_CFG",
            "weights NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG",
            "weights NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG",
            "weights NVFP4_AWQ_LITE_CFG",
        ),
        llm_compressor="gptq NVFP4A16",
        torchao="nvfp4-weight",
    ),
    *_rows(
        "nvfp4",
        modelopt=(
            "NVFP4_DEFAULT_CFG",
            "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG",
            "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG",
            "NVFP4_FOUR_OVER_SIX_CFG",
            "NVFP4_AWQ_LITE_CFG",
            "gptq NVFP4_DEFAULT_CFG",
        ),
        llm_compressor=("rtn NVFP4", "awq NVFP4", "gptq NVFP4"),
        torchao="nvfp4-dynamic",
        auto_round="NVFP4 20",
    ),
    *_rows("mxfp4_w4a16", modelopt="weights MXFP4_DEFAULT_CFG", llm_compressor="gptq MXFP4A16"),
    *_rows(
        "mxfp4",
        modelopt="MXFP4_DEFAULT_CFG",
        llm_compressor="gptq MXFP4",
        auto_round="MXFP4 20",
    ),
    *_rows("mxfp8", modelopt="MXFP8_DEFAULT_CFG", llm_compressor="rtn MXFP8"),
    *_rows("kv_fp8", modelopt="kv FP8_KV_CFG", llm_compressor="kv fp8"),
    *_rows("kv_nvfp4", modelopt="kv NVFP4_KV_CFG"),
    *_rows("kv_nvfp4_affine", modelopt="kv NVFP4_AFFINE_KV_CFG"),
    *(row for bits in ("4.8", "5", "6") for row in _rows(f"auto_{bits}", modelopt=f"auto {bits}")),
)

OUTLIER_FORMATS = frozenset({"fp8", "int8", "int8_static", "int4", "nvfp4_w4a16", "nvfp4"})
"""What is measured on the variant with outliers unless formats are named: the others would double the time."""


@dataclass(frozen=True)
class Bench:
    """One model with its tokens; results are kept below `.lathe/peers/results`."""

    model: Path
    tokens: Path
    digest: str
    """Of the model's tensors and the tokens."""

    def kept(self, row: Row) -> Path:
        """Where this row's result lies, by everything that it depends on."""
        own = hashlib.sha256(self.digest.encode())
        for part in (row.name, *REQUIREMENTS.get(row.peer, (_ours(),)), sys.version):
            own.update(part.encode() + b"\0")
        for module in (*SHARED, RUNNERS[row.peer], *(["block_kernels"] if row.peer == "modelopt" else [])):
            own.update((ROOT / "benchmarks" / "peers" / f"{module}.py").read_bytes())
        name = row.name.replace(" ", "_").replace("/", "_")
        return PEERS / "results" / self.model.name / f"{name}-{own.hexdigest()[:12]}.json"

    def known(self, row: Row) -> dict[str, Any] | None:
        """An earlier run's result, or the error that it ended with."""
        path = self.kept(row)
        return json.loads(path.read_text()) if path.is_file() else None

    def is_settled(self, row: Row) -> bool:
        """Whether running it again would say the same: a process that was killed or ran too long says nothing."""
        found = self.known(row)
        return found is not None and not found.get("error", "").startswith(NO_RESULT)

    def run(self, row: Row, python: Path, scratch: Path) -> dict[str, Any]:
        """A fresh process of the peer's environment; its output goes to a log beside the result."""
        out = self.kept(row)
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True)
        job = scratch / "job.json"
        places = {"model": str(self.model), "tokens": str(self.tokens), "scratch": str(scratch)}
        job.write_text(json.dumps({"runner": RUNNERS[row.peer], "recipe": row.recipe, **places}))
        result = scratch / "result.json"
        command = [python, "-m", "benchmarks.peers.job", job, result]
        with out.with_suffix(".log").open("wb") as log:
            error = _wait(command, log, scratch)
        found = json.loads(result.read_text()) if result.is_file() else {"error": error}
        out.write_text(json.dumps(found))
        return found


def _wait(command: list[str | Path], log: Any, scratch: Path) -> str:
    """Run offline, in a folder of its own: peers leave logs and caches where they are started."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",  # a thread that spins while it waits slows down whatever else runs here
    }
    try:
        done = subprocess.run(
            command, cwd=scratch, env=environment, stdout=log, stderr=log, timeout=LIMIT_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{NO_RESULT} within {LIMIT_seconds} s"
    return f"{NO_RESULT}: the process ended with status {done.returncode}"


@cache
def _ours() -> str:
    """A digest of our engine's sources that a number can depend on: our rows change with every line of them."""
    own = hashlib.sha256()
    for path in sorted(ROOT / "optcore" / part for part in _OURS):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            own.update(file.read_bytes())
    return own.hexdigest()
