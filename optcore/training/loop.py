"""The one training loop: AdamW, a schedule, accumulation, validation, the best kept, and exact resume.

What a step does depends on the parameters, the optimizer's moments, the seed and the step's number alone: windows are
a function of seed and step, and random numbers are drawn anew from them. So a run that is killed and goes on from its
last checkpoint gives the same losses and the same result, bit for bit on one kind of machine.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from optcore.errors import TrainingDiverged
from optcore.training.batches import Order, micro_batches, micro_size
from optcore.training.checkpoints import Checkpoints, Measured, State
from optcore.training.clipping import clip_gradients
from optcore.training.constraints import Constraint
from optcore.training.learner import Learner
from optcore.training.on_policy import OnPolicy
from optcore.training.ranks import Ranks
from optcore.training.schedule import learning_rate
from optcore.training.windows import Batch, Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.training import Training
    from optcore.training.rank_budget import RankBudget

_NOTED_steps = 1000
"""Most points of the loss curve that are kept."""


class Loop:
    """Trains the parameters that require a gradient."""

    def __init__(
        self,
        run: "Run",
        settings: "Training",
        trainee: Learner,
        windows: Windows,
        ranks: Ranks,
        budget: "RankBudget | None" = None,
        on_policy: OnPolicy | None = None,
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self.run = run
        self.settings = settings
        self.trainee = trainee
        self.windows = windows
        self.ranks = ranks
        self.parameters = {name: value for name, value in trainee.named_parameters() if value.requires_grad}
        self._budget = budget
        self._on_policy = on_policy
        self._constraints = constraints
        self._order = Order(windows.facts.training, settings.batch, run.seed)
        self._micro = micro_size(settings.micro_batch, windows.facts.length)
        self._checkpoints = Checkpoints(run.records, self.parameters, ranks)
        self._optimizer = torch.optim.AdamW(
            self.parameters.values(), settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
        )
        self.state = State()

    def start(self) -> dict[str, float]:
        """Go on from the last checkpoint, or measure the untrained start, which is the first candidate. Its values."""
        found = self._checkpoints.load(self._optimizer)
        if self._budget:
            self._budget.restore(self._checkpoints.extra)
        if found is None:
            self.state = State(measured=(self._validated(0),))
            self._checkpoints.save_best(self.state)
            self._save()
        else:
            self.state = found
        return self.state.measured[0].values

    def train(self) -> State:
        """Go through the steps that are left, after `start`; the parameters are the best ones afterwards.

        Raises `TrainingDiverged` when the loss stops being a number before anything was gained.
        """
        self.trainee.train()  # with dropout, where the model has some: a run that goes on has not validated before
        while self.state.step < self.settings.steps:
            if not self._step(self.state.step):
                self._diverged()
                break
            self._look()
            self.run.progress("training", self.state.step, self.settings.steps)
        self._checkpoints.load_best(self.state)
        return self.state

    def _step(self, step: int) -> bool:
        """One step of the optimizer; whether it was taken: not with a loss or a gradient that is no number."""
        torch.manual_seed((self.run.seed << 24) + step * self.ranks.count + self.ranks.rank)
        rate = learning_rate(step, self.settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(step)
        for constraint in self._constraints:
            constraint.project_gradients()
        norm = clip_gradients(self.parameters.values(), self.settings.clip, self._constraints)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        self._optimizer.step()
        for constraint in self._constraints:
            constraint.project_values()
        if self._budget:
            self._budget.update(step + 1)
        self._optimizer.zero_grad(set_to_none=True)
        self._note(step + 1, loss, rate)
        return True

    def _gradients(self, step: int) -> float:
        """Accumulate the gradient of the mean loss a token; returns that mean."""
        chosen = self._order.windows(step)
        own = self._on_policy.own(chosen) if self._on_policy else frozenset()
        tokens = int(self._counted(self._marked(chosen, own)))  # of all processes: each can read all windows
        total = torch.zeros((), device=self.ranks.device)
        parts = list(micro_batches(self.ranks.share(chosen), self._micro))
        for part in parts:
            with self._precision():
                batch = self._written(part, own, step)
                loss = self.trainee(batch, part, step / self.settings.steps)
            (loss / max(1, tokens)).backward()
            total += loss.detach()
        if self._budget:
            self._budget.penalty().backward()
        return float(self.ranks.summed(total)) / max(1, tokens)

    def _marked(self, windows: list[int], own: frozenset[int]) -> Batch:
        """Windows with what is learned of them, in whichever words."""
        batch = self.windows.read(windows)
        return self._on_policy.marked(batch, windows, own) if self._on_policy else batch

    def _written(self, windows: list[int], own: frozenset[int], step: int) -> Batch:
        """Windows to train on, some of them in the student's own words."""
        batch = self._on_device(windows)
        return self._on_policy.written(batch, windows, own, step) if self._on_policy else batch

    def _note(self, step: int, loss: float, rate: float) -> None:
        every = max(1, self.settings.steps // _NOTED_steps)
        losses = self.state.losses
        if step % every == 0:
            losses = (*losses, (step, loss))
            self.run.metric("loss", loss, step)
            self.run.metric("learning_rate", rate, step)
        self.state = self.state.model_copy(update={"step": step, "losses": losses})

    def _look(self) -> None:
        """Measure and save where it is due."""
        step, last = self.state.step, self.state.step == self.settings.steps
        if last or step % self.settings.validate_every == 0:
            self._validate(step)
        if last or step % self.settings.checkpoint_every == 0:
            self._save()

    def _save(self) -> None:
        self._checkpoints.save(self.state, self._optimizer, self._budget.tensors() if self._budget else {})

    def _validate(self, step: int) -> None:
        found = self._validated(step)
        best = next(one for one in self.state.measured if one.step == self.state.best)
        measure = self.trainee.measure
        is_better = judge(found.values, measure) < judge(best.values, measure)
        measured = (*self.state.measured, found)
        self.state = self.state.model_copy(update={"measured": measured} | ({"best": step} if is_better else {}))
        if is_better:
            self._checkpoints.save_best(self.state)

    def _validated(self, step: int) -> Measured:
        values = self.measured()
        for name, value in values.items():
            self.run.metric(f"validation_{name}", value, step)
        return Measured(step=step, values=values)

    def measured(self) -> dict[str, float]:
        """Means a token over the validation windows, of the parameters as they are; those that are numbers."""
        facts = self.windows.facts
        own = list(micro_batches(self.ranks.share(range(facts.training, facts.windows)), self._micro))
        names = self.trainee.measures
        total = torch.zeros(len(names), dtype=torch.float64, device=self.ranks.device)
        self.trainee.eval()
        parts = self.ranks.in_step(own, facts.validation, self._micro)
        for number, part in enumerate(parts):
            read = part or [facts.training]  # whoever has none left computes along, for what is gathered on the way
            with self._precision():
                found = self.trainee(self._on_device(read), read, None)
            if part:
                total += torch.stack([found[name] for name in names])
            self.run.progress("evaluating", number + 1, len(parts))
        self.trainee.train()
        self.ranks.spread(self.trainee)
        sums = dict(zip(names, self.ranks.summed(total).tolist(), strict=True))
        tokens = sums.pop("tokens")
        return {name: value / tokens for name, value in sums.items() if math.isfinite(value)}

    def _diverged(self) -> None:
        """Stop; what was gained until then is kept."""
        step = self.state.step
        said = f"the loss is no number any more at step {step + 1} of {self.settings.steps}"
        remedy = "lower `learning_rate`, lengthen `warmup`, or lower `clip`"
        if self.state.best == 0:
            raise TrainingDiverged(f"{said}, and nothing was gained before", remedy=remedy, field="/chain")
        self.run.notice(f"{said}: training stopped, and the best parameters, of step {self.state.best}, were kept")
        self.run.results["diverged"] = step + 1

    def _counted(self, batch: Batch) -> torch.Tensor:
        return self.trainee.counts(batch).sum()

    def _on_device(self, windows: list[int]) -> Batch:
        return self.windows.read(windows).to(self.ranks.device)

    def _precision(self) -> AbstractContextManager[object]:
        wanted = self.settings.precision
        if wanted == "float32" or (wanted == "auto" and self.ranks.device.type == "cpu"):
            return nullcontext()
        return torch.autocast(self.ranks.device.type, torch.bfloat16)


def judge(values: dict[str, float], measure: str) -> float:
    """How far from good: infinitely, where what is judged by was no number."""
    return values.get(measure, math.inf)
