"""The measured before/after report: a value that the engine fills and that three renderers read.

`optcore.report.text`, `.card` and `.page` draw it for a terminal, the Hub and a browser. No part of this needs torch.
"""

from optcore.report.front import Candidate, Front, Goal
from optcore.report.model import (
    Coverage,
    DraftFacts,
    EngineNotes,
    EngineRun,
    Environment,
    GateMetric,
    LayerError,
    Measurement,
    Report,
    Series,
    Setting,
    StageCost,
    Step,
    Task,
    TensorClass,
    Trial,
)

__all__ = [
    "Candidate",
    "Coverage",
    "DraftFacts",
    "EngineNotes",
    "EngineRun",
    "Environment",
    "Front",
    "GateMetric",
    "Goal",
    "LayerError",
    "Measurement",
    "Report",
    "Series",
    "Setting",
    "StageCost",
    "Step",
    "Task",
    "TensorClass",
    "Trial",
]
