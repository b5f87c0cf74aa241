"""A draft measured on the model as it ships, held in memory as a whole.

Shapes: S prompts of P tokens.
"""

from typing import TYPE_CHECKING, Any

import torch

from optcore.calibration.text import Texts
from optcore.conditional import load_conditional
from optcore.drafts.draft import Draft
from optcore.errors import RecipeError
from optcore.evaluate.acceptance_rows import rows_of, series_of, warnings_of
from optcore.host_memory import machine_bytes
from optcore.report import Measurement
from optcore.sizes import parameters
from optcore.speculative.acceptance import AcceptanceFacts, measure_acceptance
from optcore.speculative.cost import Cost, MakeDrafter, Wall, measure_cost, measure_wall
from optcore.speculative.sampling import Sampling
from optcore.speculative.stopping import ends_of
from optcore.speculative.target import Target

if TYPE_CHECKING:
    from optcore.evaluate.acceptance import Acceptance
    from optcore.run import Run

_ROOM = 1.5
"""Over float32 weights: caches, logits and the draft."""


def measure_draft(run: "Run", evaluator: "Acceptance") -> list[Measurement]:
    """Rows for `run.draft`, or for n-grams alone; none, with a notice, where they cannot be measured."""
    from optcore.speculative.ngram import NgramDrafter

    if reason := _cannot(run):
        run.notice(f"acceptance of the draft was not measured: {reason}")
        return []
    target = Target(run.checkpoint)
    return measure_on(run, evaluator, target, _read_draft(run, target), NgramDrafter)


def measure_on(
    run: "Run",
    evaluator: "Acceptance",
    target: Target,
    draft: Draft | None,
    ngram: MakeDrafter,
) -> list[Measurement]:
    """Rows of a draft of a target that is there; curves, facts and warnings go into the run's results."""
    texts = Texts(run.source, run.calibration, run.data_files)
    prompts_SP, ends = _prompts(texts, evaluator, target), ends_of(run.checkpoint, texts.tokenizer)
    count = min(evaluator.tokens, (draft.most if draft else None) or evaluator.tokens)
    if count < evaluator.tokens:
        run.notice(f"the draft guesses {count} tokens a round at most: so many are drafted, not {evaluator.tokens}")
    sampled = Sampling(temperature=evaluator.temperature, top_k=evaluator.top_k, top_p=evaluator.top_p)
    facts = measure_acceptance(
        target,
        draft,
        ngram,
        prompts_SP,
        count=count,
        new_tokens=evaluator.new_tokens,
        sampled=sampled,
        ends=ends,
        seed=run.seed,
    )
    run.progress("evaluating", 1, 2)
    if evaluator.timed:
        facts = _timed(run, evaluator, target, draft.drafter if draft else ngram, prompts_SP, ends, facts)
    run.progress("evaluating", 2, 2)
    for warning in warnings_of(facts, run.made):
        run.notice(warning)
    curves: Any = run.results.setdefault("series", [])
    curves += [curve.model_dump(mode="json") for curve in series_of(facts)]
    run.results["acceptance"] = facts.model_dump(mode="json")
    run.results["made"] = facts.made.model_dump(mode="json") if facts.made else None
    return rows_of(facts)


def _prompts(texts: Texts, evaluator: "Acceptance", target: Target) -> torch.Tensor:
    """Held-out text [S, P], cut so that there is room behind it."""
    longest = target.decoder.longest_sequence - evaluator.new_tokens
    if longest < 1:
        raise RecipeError(
            f"the model holds {target.decoder.longest_sequence} tokens, and {evaluator.new_tokens} are to be written",
            remedy="give `acceptance` fewer `new_tokens`",
            field="/evaluate",
        )
    return texts.evaluation_windows(evaluator.prompts, evaluator.prompt_tokens, longest)


def _timed(
    run: "Run",
    evaluator: "Acceptance",
    target: Target,
    drafter: MakeDrafter,
    prompts_SP: torch.Tensor,
    ends: frozenset[int],
    facts: AcceptanceFacts,
) -> AcceptanceFacts:
    """The facts with times; without those of decoding, and with a notice, where a model or its draft cannot go back."""
    batches = sorted({min(batch, len(prompts_SP)) for batch in evaluator.batches})
    read = round(facts.sampled.own.tau)
    costs, walls = list[Cost](), list[Wall]()
    try:
        costs += [measure_cost(target, drafter(batch), prompts_SP[:batch], facts.count, read) for batch in batches]
        for batch in batches:
            for at in (facts.greedy, facts.sampled):
                wall = measure_wall(
                    target,
                    prompts_SP[:batch].tolist(),
                    drafter,
                    new_tokens=evaluator.new_tokens,
                    count=facts.count,
                    sampling=at.sampling,
                    ends=ends,
                    seed=run.seed,
                )
                walls += [wall] if wall else []
    except RecipeError as error:
        run.notice(f"decoding with the draft was not timed: {error}")
    return facts.model_copy(update={"costs": tuple(costs), "walls": tuple(walls)})


def _read_draft(run: "Run", target: Target) -> Draft | None:
    """The run's draft, for which the target now keeps what it reads; None where n-grams are the draft."""
    from optcore.draft_document import load_draft_document
    from optcore.drafts.folder import read_draft, read_parts
    from optcore.drafts.small_model import SmallModel

    document = load_draft_document(run.draft) if run.draft else None
    if run.draft is None or document is None or document.method == "ngram":
        return None
    if document.method == "model":
        draft: Draft = SmallModel(run.draft, target.vocabulary, target.device)
    else:
        target.taps = read_parts(run.draft, len(target.decoder)).taps
        draft = read_draft(run.draft, target)
    return draft.to(target.device).eval()


def _cannot(run: "Run") -> str:
    if load_conditional(run.checkpoint):
        return "the model computes as conditional.json says, which is not decoded here"
    if not torch.cuda.is_available() and 4 * parameters(run.checkpoint) * _ROOM > machine_bytes():
        return "the model does not fit into this machine's free memory as a whole"
    return ""
