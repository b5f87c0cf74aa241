"""What a training stage leaves in its record: curves, what was measured, and what it learned from."""

from typing import TYPE_CHECKING

from optcore.report import Series
from optcore.training.checkpoints import State
from optcore.training.window_facts import WindowFacts

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.training import Training
    from optcore.training.rank_budget import RankBudget
    from optcore.training.student import Student

_TITLES = {
    "kl": ("KL to the teacher", "nats/token"),
    "cross_entropy": ("Cross-entropy", "nats/token"),
    "agreement": ("Top-1 agreement with the teacher", "share"),
}


def note_training(run: "Run", technique: "Training", state: State, data: WindowFacts) -> None:
    """Fill the stage's results."""
    curves = [Series(name=f"{run.stage}-loss", title=f"{run.stage}: training loss", points=state.losses)]
    for name in state.measured[0].values:
        title, unit = _TITLES.get(name, (name, ""))
        points = tuple((one.step, one.values[name]) for one in state.measured if name in one.values)
        curves.append(
            Series(name=f"{run.stage}-{name}", title=f"{run.stage}: {title}, validation", unit=unit, points=points)
        )
    run.results["series"] = [curve.model_dump(mode="json") for curve in curves if curve.points]
    run.results["training"] = {
        "steps": state.step,
        "best_step": state.best,
        "start": state.measured[0].values,
        "best": next(one.values for one in state.measured if one.step == state.best),
        "tokens": state.step * technique.batch * data.length,
        "data": data.model_dump(mode="json"),
    }


def note_adapters(run: "Run", student: "Student", budget: "RankBudget | None") -> None:
    """How large the adapters were that are merged now."""
    parameters = [value for module in student.adapters.values() for value in module.parameters() if value.requires_grad]
    noted = {"layers": len(student.adapters), "parameters": sum(value.numel() for value in parameters)}
    run.results["adapters"] = noted | ({"ranks": budget.ranks, "budget": budget.target} if budget else {})
