"""Train `models/stdlib-5m`, the small Llama that the demo, the tests and the benchmarks share.

    python models/train_stdlib.py --out models/stdlib-5m --minutes 40

A byte-level BPE tokenizer and a 5.2 M parameter Llama (grouped-query attention, tied embeddings) are trained on the
standard library's sources. Every random choice comes from `--seed`, so the same Python, torch and number of steps give
the same run; `--minutes` only sets the number of steps from the speed of a short warm-up, and the number is printed
and stored so that `--steps` repeats it.
"""

import argparse
import hashlib
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from optcore.calibration import stdlib

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
WINDOW_tokens = 512
BATCH_windows = 16
PEAK_LR_MATRIX = 0.02  # Muon, on the 2-D weights of the decoder layers
PEAK_LR_OTHER = 3e-3  # AdamW, on embeddings and norms
WARM_UP_steps = 50


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so every input has an encoding and decoding is exact."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All documents as one stream of token ids, each ended by the end-of-text token. Shape [tokens]."""
    end = tokenizer.eos_token_id
    ids: list[int] = []
    for text in texts:
        ids.extend(tokenizer.encode(text, add_special_tokens=False))
        ids.append(end)
    return torch.from_numpy(np.array(ids, dtype=np.int64))


def build_model() -> LlamaForCausalLM:
    """Dimensions are multiples of 128, and the vocabulary differs from every hidden size (exporters guess by shape)."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the decoder matrices, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "layers" not in name]
    return [
        torch.optim.Muon(matrices, lr=PEAK_LR_MATRIX, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=PEAK_LR_OTHER, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, flat, then a linear fall to 2 % over the last half (trapezoid)."""
    if step < WARM_UP_steps:
        return (step + 1) / WARM_UP_steps
    return min(1.0, 0.02 + 0.98 * (steps - step) / (0.5 * steps))


def batch_loss(model: LlamaForCausalLM, windows_BT: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BTV = model(windows_BT[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits_BTV.float().flatten(0, 1), windows_BT[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, stream: torch.Tensor, windows: int) -> float:
    """Over `windows` windows spread evenly over the stream."""
    starts = torch.linspace(0, len(stream) - WINDOW_tokens - 1, windows).long()
    losses = [batch_loss(model, stream[s : s + WINDOW_tokens + 1][None]) for s in starts.tolist()]
    return math.exp(torch.stack(losses).mean().item())


def unigram_perplexity(train: torch.Tensor, test: torch.Tensor) -> float:
    """What a model that only knows token frequencies reaches: the level that ours must be far below."""
    counts = torch.bincount(train, minlength=VOCABULARY).double() + 1
    return math.exp(-(counts / counts.sum()).log()[test].mean().item())


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, test: torch.Tensor, steps: int, minutes: float, seed: int
) -> int:
    """Run the loop and return the number of steps taken."""
    generator = torch.Generator().manual_seed(seed)
    both = optimizers(model)
    peaks = [group["lr"] for optimizer in both for group in optimizer.param_groups]
    start = time.time()
    step = 0
    while True:
        if step == WARM_UP_steps and not steps:
            steps = int(minutes * 60 / ((time.time() - start) / WARM_UP_steps))
            print(f"steps {steps}", flush=True)
        for group, peak in zip((g for o in both for g in o.param_groups), peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(step, steps or 10**9)
        starts = torch.randint(len(stream) - WINDOW_tokens - 1, (BATCH_windows,), generator=generator)
        windows_BT = torch.stack([stream[s : s + WINDOW_tokens + 1] for s in starts.tolist()])
        loss = batch_loss(model, windows_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0 or step == steps:
            shown = perplexity(model, test, 24)
            print(
                f"step {step} loss {loss.item():.3f} held-out ppl {shown:.2f} {time.time() - start:.0f} s", flush=True
            )
        if step == steps:
            return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    train_texts = [d.text for d in stdlib.documents("train", everything=True)]
    test_texts = [d.text for d in stdlib.documents("test")]
    tokenizer = train_tokenizer(train_texts)
    train_stream, test_stream = encode(tokenizer, train_texts), encode(tokenizer, test_texts)
    model = build_model()
    print(
        f"train tokens {len(train_stream)} test tokens {len(test_stream)} parameters {model.num_parameters()}",
        flush=True,
    )
    steps = train(model, train_stream, test_stream, options.steps, options.minutes, options.seed)

    model = model.to(torch.bfloat16)
    facts = {
        "steps": steps,
        "seed": options.seed,
        "trained_tokens": steps * BATCH_windows * WINDOW_tokens,
        "train_stream_tokens": len(train_stream),
        "train_text_sha256": hashlib.sha256("".join(train_texts).encode()).hexdigest(),
        "held_out_perplexity": perplexity(model, test_stream, 128),
        "held_out_unigram_perplexity": unigram_perplexity(train_stream, test_stream),
        "parameters": model.num_parameters(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
