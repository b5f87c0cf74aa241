"""The Markdown that `docs/performance.md` holds: what came out, a short table by format and a full one by row."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import stdev
from typing import Any

from benchmarks.peers.rows import Bench, Row

Results = list[tuple[Row, dict[str, Any]]]

STAND_IN = "stand-in kernel: seconds not comparable"


def print_tables(bench: Bench, rows: Sequence[Row]) -> None:
    """Both tables of one model, from the results that are kept."""
    results = [(row, found) for row in rows if (found := bench.known(row)) is not None]
    source = next((found["source_perplexity"] for _, found in results if "kl" in found), math.nan)
    print(f"\n### {bench.model.name}\n\nPerplexity of the source: {source:.3f}.\n")
    print("\n".join(_short(results)))
    print("\n".join(_full(results)))


def _short(results: Results) -> Iterator[str]:
    """One line a format: ours against the best that any peer's recipe reached."""
    yield "| format | ours, KL | best peer, KL | which | ours/best | ours/nearest | ours, s | best peer, s | |"
    yield "| :-- | --: | --: | :-- | --: | --: | --: | --: | :-- |"
    for format_, group in groupby(results, key=lambda result: result[0].format):
        several = list(group)
        ours, nearest = (_one(several, role) for role in ("default", "nearest"))
        peers = [(row, found) for row, found in several if row.role == "peer" and "kl" in found]
        best_row, best = min(peers, key=lambda peer: peer[1]["kl"], default=(None, {}))
        which = best_row.name if best_row else "no peer runs here"
        yield (
            f"| {format_} | {_kl(ours)} | {_kl(best)} | {which} | {_ratio(ours, best)} | {_ratio(ours, nearest)} "
            f"| {_seconds(ours)} | {'' if best_row and best_row.has_stand_in else _seconds(best)} "
            f"| {_verdict(ours, best)} |"
        )


def _full(results: Results) -> Iterator[str]:
    yield "\n| format | quantizer and recipe | KL | ± | perplexity | top-1 | seconds | peak RSS, MB | bytes | |"
    yield "| :-- | :-- | --: | --: | --: | --: | --: | --: | --: | :-- |"
    for row, found in results:
        if "error" in found:
            error = found["error"].replace("|", "\\|")
            yield f"| {row.format} | {row.name} | | | | | | | | `{error}` |"
            continue
        note = [STAND_IN] if row.has_stand_in else []
        note += [f"{found['bits']:.2f} bits a weight"] if "bits" in found else []
        note += [f"simulated {found['simulated_kl']:.5f}"] if "simulated_kl" in found else []
        yield (
            f"| {row.format} | {row.name} | {found['kl']:.5f} | {found['kl_se']:.5f} | {found['perplexity']:.3f} "
            f"| {found['agreement']:.4f} | {_seconds(found)} | {_peak(found)} "
            f"| {found.get('bytes', '')} | {'; '.join(note)} |"
        )


def _one(results: Results, role: str) -> dict[str, Any]:
    return next((found for row, found in results if row.role == role), {})


def _kl(found: dict[str, Any]) -> str:
    return f"{found['kl']:.5f}" if "kl" in found else ""


def _seconds(found: dict[str, Any]) -> str:
    return f"{found['seconds']:.1f}" if "seconds" in found else ""


def _peak(found: dict[str, Any]) -> str:
    return f"{found['peak_rss_mb']:.0f}" if "peak_rss_mb" in found else ""


def _ratio(found: dict[str, Any], other: dict[str, Any]) -> str:
    return f"{found['kl'] / other['kl']:.3f}" if "kl" in found and "kl" in other else ""


def _verdict(ours: dict[str, Any], best: dict[str, Any]) -> str:
    """A difference counts beyond two standard errors of the windows' paired differences."""
    if "kl" not in ours or "kl" not in best:
        return ""
    paired = [own - other for own, other in zip(ours["window_kl"], best["window_kl"], strict=True)]
    mean, error = sum(paired) / len(paired), stdev(paired) / math.sqrt(len(paired))
    if abs(mean) <= 2 * error:
        return "equal within error"
    return "lower" if mean < 0 else "**higher**"
