"""A checkpoint whose token embeddings share numbers by a hash."""

from typing import TYPE_CHECKING

import torch

from optcore.algorithms.hashing import fitted_buckets, from_buckets
from optcore.calibration.propagate import calibration_windows
from optcore.hashed import BUCKETS, NOTE, Hashed, HashedTensor
from optcore.links import link_companions
from optcore.streaming.decoder import Decoder
from optcore.streaming.tensor_file import TensorFile
from optcore.streaming.writer import TensorWriter, name_weights

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.hash_share import HashShare


@torch.no_grad()
def hash_embeddings(run: "Run", technique: "HashShare") -> None:
    """Write `run.checkpoint` with hashed token embeddings to `run.out`, with `hashed.json` and the buckets."""
    decoder = Decoder(run.checkpoint)
    parameter = _token_table(decoder)
    name = decoder.names.stored_name[parameter]
    table_RK = decoder.reader.tensor(name)
    counts_R = _counts(run, decoder, len(table_RK)) if technique.weighting == "counts" else None
    wanted = max(1, round(technique.ratio * table_RK.numel()))
    exact_B = fitted_buckets(table_RK, wanted, run.seed, technique.method, counts_R)
    values_B = exact_B.to(table_RK.dtype)
    shared_RK = from_buckets(values_B, tuple(table_RK.shape), run.seed, technique.method)
    with TensorFile(run.out / BUCKETS, run.scratch) as file:
        file.add(f"{name}.buckets", values_B)
        file.close()
    _write(run, decoder, dict.fromkeys((name, *decoder.tied_copies(name)), shared_RK))
    found = HashedTensor(
        shape=tuple(table_RK.shape),
        buckets=wanted,
        seed=run.seed,
        hash=technique.method,
        relative_error=_relative_error(table_RK, shared_RK, counts_R),
    )
    Hashed(tensors={name: found}).save(run.out)
    run.results["hashed"] = {name: found.model_dump(mode="json")}
    run.notice(
        f"{name} has {wanted} numbers for {table_RK.numel()} places, with a relative error of "
        f"{found.relative_error:.3g}. {NOTE}"
    )


def _token_table(decoder: Decoder) -> str:
    """The parameter that tokens are looked up in."""
    table = decoder.model.get_input_embeddings()
    return next(f"{name}.weight" for name, module in decoder.model.named_modules() if module is table)


def _counts(run: "Run", decoder: Decoder, rows: int) -> torch.Tensor:
    """How often each token is in the calibration set, plus one."""
    return torch.bincount(calibration_windows(run, decoder).flatten(), minlength=rows) + 1


def _write(run: "Run", decoder: Decoder, changed: dict[str, torch.Tensor]) -> None:
    writer = TensorWriter(run.out)
    for name, tensor in decoder.outside_tensors():
        writer.add(name, changed.get(name, tensor))
    for index in range(len(decoder)):
        with decoder.layer(index, keep_stored=True):
            for name, tensor in decoder.stored_tensors(index).items():
                writer.add(name, tensor)
        run.progress("searching", index + 1, len(decoder))
    writer.close()
    name_weights(run.out)
    link_companions(run.checkpoint, run.out)


def _relative_error(table_RK: torch.Tensor, shared_RK: torch.Tensor, counts_R: torch.Tensor | None) -> float:
    """Weighted by row as in the fit."""
    count_R = torch.ones(len(table_RK)) if counts_R is None else counts_R
    sizes = ((each.double().square().sum(1) * count_R).sum() for each in (table_RK.double() - shared_RK, table_RK))
    error, size = map(float, sizes)
    return (error / size) ** 0.5 if size else 0.0
