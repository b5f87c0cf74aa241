"""What must hold at every moment, whatever was broken; one query each, which finds what contradicts it."""

from dataclasses import dataclass, field

from chaos_cluster import Cluster

CONTRADICTIONS = {
    "two results of one job": """
        SELECT job_id FROM attempts WHERE state = 'succeeded' GROUP BY job_id HAVING count(*) > 1""",
    "a result of an epoch that did not hold the lease": """
        SELECT j.id FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.epoch = j.epoch
        WHERE j.status = 'succeeded' AND a.state IS DISTINCT FROM 'succeeded'""",
    "a succeeded job without files, or files of a job that did not succeed": """
        SELECT id FROM jobs WHERE (status = 'succeeded') <> EXISTS (SELECT 1 FROM artifacts WHERE job_id = jobs.id)""",
    "a gap in a history": """
        SELECT j.id FROM jobs j JOIN events e ON e.job_id = j.id GROUP BY j.id, j.last_seq
        HAVING count(*) <> j.last_seq OR max(e.seq) <> j.last_seq OR min(e.seq) <> 1""",
    "two ends of one run": """
        SELECT j.id FROM jobs j JOIN events e ON e.job_id = j.id
        WHERE e.type IN ('job.succeeded', 'job.failed', 'job.cancelled')
        GROUP BY j.id, j.run_number HAVING count(*) > j.run_number""",
    "two attempts at once": """
        SELECT job_id FROM attempts WHERE state = 'running' GROUP BY job_id HAVING count(*) > 1""",
    "an attempt that runs for a job that nobody holds": """
        SELECT j.id FROM jobs j JOIN attempts a ON a.job_id = j.id
        WHERE (a.state = 'running') <> (j.worker_id IS NOT NULL AND a.epoch = j.epoch)""",
    "a lease without an owner": """
        SELECT id FROM jobs WHERE (lease_until IS NULL) <> (worker_id IS NULL)
        OR (status IN ('running', 'pausing', 'cancelling')) <> (worker_id IS NOT NULL)""",
    "a stage that runs in a job that is over": """
        SELECT j.id FROM jobs j JOIN stages s ON s.job_id = j.id
        WHERE j.finished_at IS NOT NULL AND s.status IN ('running', 'pending')""",
}


@dataclass
class Invariants:
    """Checks them, and remembers what was final."""

    cluster: Cluster
    checks: int = 0
    _ends: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def check(self) -> None:
        """Raises AssertionError with the rows that contradict one."""
        self.checks += 1
        for name, statement in CONTRADICTIONS.items():
            found = self.cluster.rows(statement)
            assert not found, f"{name}: {found}\n{self.cluster.logs()}"
        self._check_that_ends_are_final()

    def _check_that_ends_are_final(self) -> None:
        ended = self.cluster.rows(
            "SELECT id, run_number, status, epoch, artifact_digest, last_seq, publish_epoch FROM jobs"
            " WHERE finished_at IS NOT NULL"
        )
        for row in ended:
            end = (row["status"], row["epoch"], row["artifact_digest"], row["last_seq"] - row["publish_epoch"])
            before = self._ends.setdefault(f"{row['id']}/{row['run_number']}", end)
            assert before == end, f"{row['id']} ended as {before}, and is {end} now"
