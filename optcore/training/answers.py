"""A teacher asked once: its likeliest tokens at every position of every training window, kept for all students."""

from typing import TYPE_CHECKING

import torch

from optcore.durable import write_settled
from optcore.training.batches import micro_batches, micro_size
from optcore.training.divergences import top_k_of
from optcore.training.teacher import LiveTeacher
from optcore.training.teacher_cache import CacheFacts, CacheWriter
from optcore.training.trainee import inputs_of
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from optcore.run import Run


@torch.no_grad()
def keep_answers(run: "Run", top_k: int, temperature: float) -> None:
    """Write the answers of `run.teacher` to `run.windows` into `run.out`; those that a killed process got are kept."""
    windows = Windows(run.windows)
    facts, device = windows.facts, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert run.teacher
    teacher = LiveTeacher(run.teacher, device)
    vocabulary = int(teacher.model.config.get_text_config().vocab_size)
    described = CacheFacts(
        windows=facts.windows,
        length=facts.length,
        k=min(top_k, vocabulary),
        vocabulary=vocabulary,
        temperature=temperature,
    )
    write_settled(run.records / "answers.json", described.model_dump_json())  # or a killed process's files are removed
    everywhere = torch.ones(facts.length, dtype=torch.bool, device=device)
    with CacheWriter(run.out, described) as writer:
        left = list(range(writer.written, facts.windows))
        for part in micro_batches(left, micro_size(None, facts.length)):
            batch = windows.read(part).to(device)
            rows = teacher.rows(inputs_of(batch), everywhere.expand(len(part), -1), part)
            writer.append(top_k_of(rows.of(slice(None)), described.k, temperature))
            run.progress("evaluating", writer.written, facts.windows)
    run.results["answers"] = {"bytes_per_token": described.bytes_per_token, "k": described.k}
