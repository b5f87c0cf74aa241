"""Tallies as Prometheus's counters and histograms."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

from api.store.tallies import Counted, STAGE_BOUNDS_seconds

_BOUNDS = [*map(str, map(float, STAGE_BOUNDS_seconds)), "+Inf"]


def counters(found: Sequence[Counted]) -> Iterator[Metric]:
    """Of everything that is tallied."""
    kinds: defaultdict[str, list[Counted]] = defaultdict(list)
    for tally in found:
        kinds[tally.kind].append(tally)
    yield _counter("lathe_jobs_submitted", "Jobs submitted.", ["device"], kinds["submission"])
    yield _counter("lathe_jobs_finished", "Jobs that ended.", ["status"], kinds["job"])
    yield _seconds("lathe_job_run_seconds", "Seconds in workers' hands, of jobs that ended.", ["status"], kinds["job"])
    ended = "Attempts that ended; with the kind of their failure, if one is known."
    yield _counter("lathe_attempts", ended, ["state", "failure"], kinds["attempt"])
    yield _counter("lathe_webhook_deliveries", "Attempts to deliver a message.", ["outcome"], kinds["delivery"])
    spent = "Seconds spent on them."
    yield _seconds("lathe_webhook_delivery_seconds", spent, ["outcome"], kinds["delivery"])
    yield from _stages(kinds["stage"])


def _counter(name: str, said: str, labels: Sequence[str], found: Iterable[Counted]) -> Metric:
    family = CounterMetricFamily(name, said, labels=labels)
    for tally in found:
        family.add_metric(tally.labels, tally.count)
    return family


def _seconds(name: str, said: str, labels: Sequence[str], found: Iterable[Counted]) -> Metric:
    family = CounterMetricFamily(name, said, labels=labels)
    for tally in found:
        family.add_metric(tally.labels, tally.seconds)
    return family


def _stages(found: Sequence[Counted]) -> Iterator[Metric]:
    """Outcomes of all; seconds of those that were really run."""
    ended: defaultdict[tuple[str, str], int] = defaultdict(int)
    ran: defaultdict[str, list[Counted]] = defaultdict(list)
    for tally in found:
        technique, status, bucket = tally.labels
        ended[technique, status] += tally.count
        if status == "succeeded" and bucket:
            ran[technique].append(tally)
    outcomes = CounterMetricFamily("lathe_stages", "Stages that ended.", labels=["technique", "status"])
    for labels, count in ended.items():
        outcomes.add_metric(labels, count)
    seconds = HistogramMetricFamily("lathe_stage_seconds", "Time of stages that were run.", labels=["technique"])
    for technique, tallies in ran.items():
        counts = [0] * len(_BOUNDS)
        for tally in tallies:
            counts[int(tally.labels[2])] += tally.count
        buckets = list(zip(_BOUNDS, accumulate(counts), strict=True))
        seconds.add_metric([technique], buckets, sum(tally.seconds for tally in tallies))
    yield from (outcomes, seconds)
