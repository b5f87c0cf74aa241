"""Ours and installed peers side by side: the same model, tokens and evaluator, each in a process of its own."""

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.outliers import write_outliers
from benchmarks.peers.rows import OUTLIER_FORMATS, ROWS, Bench, Row
from benchmarks.peers.score import load, source_logits
from benchmarks.peers.tables import print_tables
from benchmarks.peers.venvs import PEERS, VenvError, make_venvs
from optcore.references import Calibration

CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=256)
EVALUATION_windows, EVALUATION_tokens = 64, 512


def compare_quantizers(model: Path, only: Sequence[str] = (), *, again: bool = False, run: bool = True) -> None:
    """Run what is not known yet, on the model and on its variant with outliers, and print both as Markdown.

    `only` are formats and quantizers; `again` measures the chosen rows anew, kept or not.
    """
    plain, outliers = _bench(model), _bench(_with_outliers(model))
    chosen = [row for row in ROWS if not only or _is_named(row, only)]
    named = {row.format for row in ROWS} & {*only} or OUTLIER_FORMATS
    pairs = [(bench, row) for row in chosen for bench in (plain, outliers) if bench is plain or row.format in named]
    if run:
        _run([(bench, row) for bench, row in pairs if again or not bench.is_settled(row)])
    for bench in (plain, outliers):
        print_tables(bench, [row for own, row in pairs if own is bench])


def _is_named(row: Row, only: Sequence[str]) -> bool:
    """Formats and quantizers each narrow the choice: `nvfp4 int4 ours` are our rows of two formats."""
    formats, peers = {row.format for row in ROWS} & {*only}, {row.peer for row in ROWS} & {*only}
    return (not formats or row.format in formats) and (not peers or row.peer in peers)


def _run(wanted: list[tuple[Bench, Row]]) -> None:
    """Rows of one format stand together, so that what is compared is measured within minutes."""
    pythons: dict[str, Path | VenvError] = {"ours": Path(sys.executable)}
    pythons |= make_venvs({row.peer for _, row in wanted} - {"ours"})
    for bench, row in wanted:
        _measure(bench, row, pythons[row.peer])


def _measure(bench: Bench, row: Row, python: Path | VenvError) -> None:
    if isinstance(python, VenvError):
        print(f"{bench.model.name}: {row.name}: no environment: {python}", file=sys.stderr, flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = bench.run(row, python, Path(folder) / "run")
    said = found.get("error") or f"KL {found['kl']:.5f} in {found['seconds']:.1f} s"
    print(f"{bench.model.name}: {row.format}: {row.name}: {said}", file=sys.stderr, flush=True)


def _with_outliers(model: Path) -> Path:
    """Made again when the model changes."""
    out = PEERS / "models" / f"{model.name}-outliers"
    source = _digest(model / "model.safetensors")
    stamp = out / "source.sha256"
    if not stamp.is_file() or stamp.read_text() != source:
        shutil.rmtree(out, ignore_errors=True)
        write_outliers(model, out)
        stamp.write_text(source)
    return out


def _bench(model: Path) -> Bench:
    """The token ids are cut once, by us, and the source is run on them once: everybody reads both."""
    import torch
    from safetensors.torch import save_file

    from optcore.calibration.text import Texts

    texts = Texts(model, CALIBRATION, ())
    windows = {
        "calibration": texts.calibration_windows(CALIBRATION.sequence_length),
        "evaluation": texts.evaluation_windows(EVALUATION_windows, EVALUATION_tokens, EVALUATION_tokens),
    }
    tokens = PEERS / "inputs" / model.name / "tokens.safetensors"
    tokens.parent.mkdir(parents=True, exist_ok=True)
    fresh = tokens.with_name(f"{os.getpid()}.safetensors")  # another run may be reading the old one
    save_file({name: ids.to(torch.int32) for name, ids in windows.items()}, fresh)
    fresh.replace(tokens)
    bench = Bench(model, tokens, _digest(model / "model.safetensors") + _digest(tokens))
    stamp = tokens.with_name("digest")
    if not stamp.is_file() or stamp.read_text() != bench.digest:
        logits = source_logits(load(model), windows["evaluation"])
        save_file({"logits": logits}, fresh)
        fresh.replace(tokens.with_name("logits.safetensors"))
        stamp.write_text(bench.digest)
    return bench


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
