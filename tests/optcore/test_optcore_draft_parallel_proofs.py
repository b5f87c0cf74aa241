"""What `medusa`, `mtp` and `block` learn on the shipped model, printing how many tokens a target's pass yields.

Trained on windows of the standard library's sources, 200 steps of 4 x 64 tokens; measured on greedy continuations by
the target of other modules. On the target's own greedy text, a teacher-forced pass tells exactly what a chain would
have accepted: a round goes on by the drafted tokens that match, and one.
"""

from pathlib import Path

import pytest
import torch
from fixtures.drafting import METHODS, Lesson, made, python_windows

from optcore.drafts.draft import Draft
from optcore.drafts.taps import spread_taps
from optcore.speculative.target import Target

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
COUNT, STEPS, BATCH, LENGTH = 4, 200, 4, 64
PROMPT, NEW = 32, 64
GAINS = {"medusa": 0.08, "mtp": 0.22, "block": 0.08}
"""Tokens a round more than untrained: about half of what was measured, or less."""
RATES = {"medusa": 1e-3, "mtp": 2e-3, "block": 2e-3}
LEARNED = (
    "argparse", "ast", "asyncio.base_events", "calendar", "collections", "configparser", "copy", "csv",
    "dataclasses", "datetime", "decimal", "difflib", "doctest", "email.message", "enum", "functools", "gettext",
    "heapq", "http.client", "inspect", "ipaddress", "json.decoder", "locale", "logging", "mailbox", "optparse",
    "pathlib", "pdb", "pickle", "platform", "plistlib", "pydoc", "random", "shutil", "smtplib", "socket", "ssl",
    "statistics", "subprocess", "tarfile", "tempfile", "threading", "tokenize", "traceback", "turtle", "typing",
)  # fmt: skip
HELD_OUT = ("zipfile", "unittest.mock", "xml.dom.minidom", "urllib.request")


def _greedy_texts(model: Path, target: Target, count: int) -> torch.Tensor:
    """Prompts from held-out modules, continued."""
    windows = python_windows(model, HELD_OUT, PROMPT)
    prompts_BT = windows[:: len(windows) // count][:count]
    made_BT = target.model.generate(
        prompts_BT, attention_mask=torch.ones_like(prompts_BT), do_sample=False, max_new_tokens=NEW, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    found: torch.Tensor = made_BT
    return found


@torch.no_grad()
def _walked(draft: Draft, target: Target, texts_BT: torch.Tensor) -> tuple[float, list[float]]:
    """Tokens a round, and how often each answer matches on its own."""
    positions_BT = torch.arange(texts_BT.shape[1]).expand_as(texts_BT)
    features = target.look({"input_ids": texts_BT})
    matches = []
    for k, hidden in enumerate(draft.answers(texts_BT, positions_BT, features, COUNT)):
        said_BT = draft.vocabulary.ids_D[draft.logits(hidden, k).argmax(-1)]
        matches.append(said_BT == texts_BT.roll(-2 - k, 1))
    matches_BTK = torch.stack(matches, -1)
    rounds = yielded = 0
    for row_TK in matches_BTK:
        place = PROMPT - 1  # the first new token is the target's own
        while place + 1 + COUNT < texts_BT.shape[1]:
            accepted = int(row_TK[place].long().cumprod(0).sum())
            rounds, yielded, place = rounds + 1, yielded + accepted + 1, place + accepted + 1
    counted_BTK = matches_BTK[:, PROMPT - 1 : -1 - COUNT]
    return yielded / rounds, counted_BTK.double().mean((0, 1)).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_draft_yields_more_than_a_token_a_pass(method: str, stdlib_model: Path) -> None:
    target = Target(stdlib_model, taps=spread_taps(6, 5))
    windows = python_windows(stdlib_model, LEARNED, LENGTH)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    texts_BT = _greedy_texts(stdlib_model, target, 16)
    draft = made(method, target, count=COUNT)
    draft.anchors = 16 if draft.anchors else None
    untrained, _ = _walked(draft, target, texts_BT)
    lesson = Lesson(draft, target, COUNT, RATES[method])
    for step in range(STEPS):
        picked = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        loss = lesson.step(windows[picked])
    tau, shares = _walked(draft, target, texts_BT)
    size = sum(parameter.numel() for parameter in draft.parameters()) / 1e6
    said = "  ".join(f"{share:.3f}" for share in shares)
    print(f"\n{method}: {size:.2f}M parameters, K={COUNT}, greedy chain, {NEW * len(texts_BT)} tokens")
    print(f"  tokens a round {untrained:.3f} -> {tau:.3f}  matches {said}  last loss {loss:.3f}", flush=True)
    assert tau > untrained + GAINS[method]
