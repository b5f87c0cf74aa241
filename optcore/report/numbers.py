"""How numbers are written, everywhere in a report: one value, one change, one verdict."""

import sys
from typing import Literal

from optcore.report.model import GateMetric, Measurement, Trial

Verdict = Literal["better", "worse", "same"]

NOTHING = "–"  # noqa: RUF001  an en dash: not measured
GATE_METRICS: dict[GateMetric, tuple[str, str]] = {
    "kl": ("KL to the source", "nats/token"),
    "ppl_ratio": ("Perplexity over the source's", ""),
    "agreement": ("Agreement with the source", "share"),
    "accuracy": ("Accuracy", "share"),
}
"""Title and unit of what gates measure."""
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def format_value(value: float | None, unit: str = "") -> str:
    """A value with its unit, at four significant digits."""
    if value is None:
        return NOTHING
    if unit == "bytes":
        return format_bytes(value)
    if unit == "seconds":
        return format_seconds(value)
    if unit == "share":
        return f"{format_number(_finite(value * 100))}%"
    return f"{format_number(value)} {unit}".rstrip()


def format_number(value: float) -> str:
    """Four significant digits; thousands are grouped, the very large and the very small are scientific."""
    magnitude = abs(value)
    if value == 0:
        return "0"
    if not 1e-4 <= magnitude < 1e15:
        return f"{value:.3e}"
    if magnitude >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_bytes(value: float) -> str:
    """Decimal units, as disks and the Hub count them."""
    unit = 0
    while float(f"{abs(value):.4g}") >= 1000 and unit < len(_BYTE_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{format_number(value)} {_BYTE_UNITS[unit]}"


def format_peaks(host_bytes: float, gpu_bytes: float | None) -> str:
    """Peak memory of the host and, where one was used, of the fullest GPU."""
    return (
        format_bytes(host_bytes) if gpu_bytes is None else f"{format_bytes(host_bytes)}, GPU {format_bytes(gpu_bytes)}"
    )


def format_seconds(value: float) -> str:
    """Seconds below a minute and a half (and where hours would be beyond reading), then minutes, then hours."""
    if not 90 <= value < 1e9:
        return f"{format_number(value)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 90:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def reference_of(measurement: Measurement) -> float | None:
    """What the result is compared with: the source, else the baseline."""
    return measurement.baseline if measurement.source is None else measurement.source


def format_change(measurement: Measurement) -> str:
    """The result against the source, else against the baseline (which is then named); empty when there is none."""
    reference, result = reference_of(measurement), measurement.result
    if reference is None or result is None:
        return ""
    suffix = " vs max" if measurement.source is None else ""
    if measurement.unit == "share":
        return f"{_signed((result - reference) * 100)} points{suffix}"
    if reference == 0:
        return ""
    return _relative(result / reference) + suffix


def format_trial(trial: Trial) -> str:
    """What was measured, such as `KL to the source 0.031 nats/token`."""
    title, unit = GATE_METRICS[trial.metric]
    return f"{title} {format_value(trial.value, unit)}"


def format_bound(trial: Trial) -> str:
    """What a gate asks for, such as `at most 0.03 nats/token`."""
    _, unit = GATE_METRICS[trial.metric]
    return f"at {'most' if trial.better == 'lower' else 'least'} {format_value(trial.bound, unit)}"


def verdict(measurement: Measurement) -> Verdict | None:
    """Whether the change is one that people want; None where neither direction is good or something is missing."""
    reference, result = reference_of(measurement), measurement.result
    if measurement.better is None or reference is None or result is None:
        return None
    if result == reference:
        return "same"
    return "better" if (result < reference) == (measurement.better == "lower") else "worse"


def _relative(ratio: float) -> str:
    if abs(ratio) >= 10:
        return f"x{format_number(_finite(ratio))}"
    return f"{_signed((ratio - 1) * 100)}%"


def _signed(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{_finite(value):+.1e}"
    rounded = round(value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def _finite(value: float) -> float:
    """The nearest finite float: arithmetic on the largest values overflows."""
    return max(-sys.float_info.max, min(sys.float_info.max, value))
