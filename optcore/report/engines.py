"""The table that compares source and results in the engines that serve them."""

from collections.abc import Sequence

from optcore.report.model import EngineRun
from optcore.report.numbers import format_bytes, format_seconds, format_value


def engine_rows(runs: Sequence[EngineRun]) -> list[list[str]]:
    """Header and rows as text, the source first; empty where nothing was measured in an engine."""
    if not runs:
        return []
    header = ["In", "Weights", "Load", "Prefill", "Decode", "Peak memory", "KL to the source", "Agreement"]
    return [header, *map(_cells, runs)]


def engine_note(runs: Sequence[EngineRun]) -> str:
    """How they were measured, the first for all of them; empty where nothing was."""
    if not runs:
        return ""
    first = runs[0]
    written = f", then {first.new_tokens} written greedily" if first.new_tokens else ""
    return (
        f"Each in a process of its own on this machine's processor, threads: {first.threads}; a prompt of "
        f"{first.prompt_tokens} tokens{written}, the median of three. KL and agreement over {first.positions} "
        "positions of held-out text."
    )


def _cells(run: EngineRun) -> list[str]:
    what = "source" if run.is_source else run.result or run.target
    return [
        f"{run.engine} {run.engine_version}: {what}",
        format_bytes(run.file_bytes),
        format_seconds(run.load_seconds),
        format_value(run.prefill_speed, "tokens/s"),
        format_value(run.decode_speed, "tokens/s"),
        format_bytes(run.peak_memory_bytes),
        format_value(run.kl, "nats"),
        format_value(run.agreement, "share"),
    ]
