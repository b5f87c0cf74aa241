"""The table of what stages were expected to take, and took."""

from optcore.report.model import Report
from optcore.report.numbers import NOTHING, format_bytes, format_seconds


def expected_rows(report: Report) -> list[list[str]]:
    """Header and rows as text: a stage's time and peak memory, each as expected and as it was, then the result's size.
    The memory of the fullest GPU too, where one was expected or used.

    Empty where nothing was expected. A stage that was found done says so instead of a time.
    """
    told = {stage.stage: stage for stage in report.expected}
    if not told:
        return []
    rows = [["Stage", "Time expected", "Took", "Memory or size expected", "Took"]]
    uses_gpu = any(one.gpu_memory_bytes for one in report.expected)
    uses_gpu |= any(stage.peak_gpu_memory_bytes for stage in report.stages)
    rows[0] += ["GPU memory expected", "Took"] if uses_gpu else []
    for stage in report.stages:
        if found := told.get(stage.name):
            time = f"{format_seconds(found.seconds)} ({_range(found.seconds_low, found.seconds_high)})"
            took = "cached" if stage.cached else format_seconds(stage.seconds)
            memory = [format_bytes(found.host_memory_bytes), format_bytes(stage.peak_memory_bytes)]
            gpu = [_bytes(found.gpu_memory_bytes), _bytes(stage.peak_gpu_memory_bytes)] if uses_gpu else []
            rows.append([stage.name, time, took, *memory, *gpu])
    weighs = next((row.result for row in report.measurements if row.name == "weight_bytes"), None)
    if report.expected_bytes is not None and weighs is not None:
        sizes = [format_bytes(report.expected_bytes), format_bytes(weighs)]
        gpu = [NOTHING, NOTHING] if uses_gpu else []
        rows.append(["weights of the result", NOTHING, NOTHING, *sizes, *gpu])
    return rows


def _bytes(value: int | None) -> str:
    return format_bytes(value) if value else NOTHING


def _range(low: float, high: float) -> str:
    return f"{format_seconds(round(low, 1))} to {format_seconds(round(high, 1))}"
