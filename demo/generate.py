"""Text from the source and from the result, side by side: the proof that a real engine loads what we wrote."""

import io
from contextlib import redirect_stderr
from pathlib import Path

PROMPTS = ('def read_file(path):\n    """', 'class Queue:\n    """', "import os\nimport sys\n\ndef main(")
NEW_tokens = 48


def generate_side_by_side(source: Path, result: Path) -> None:
    """Load both in transformers (the result through compressed-tensors) and print greedy continuations."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result)
    models = {"source": _load(source), "result": _load(result)}
    for prompt in PROMPTS:
        for name, model in models.items():
            print(f"\n--- {name} {'-' * 40}\n{_continue(model, tokenizer, prompt)}")
    print()


def _load(folder: Path):  # type: ignore[no-untyped-def]
    """Every tensor of the file must have found its place, or nothing that follows means anything."""
    from transformers import AutoModelForCausalLM

    with redirect_stderr(io.StringIO()):  # progress bars of two libraries, which no setting turns off
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise SystemExit(f"{folder} does not fit its model class: {info}")
    return model.eval()


def _continue(model, tokenizer, prompt: str) -> str:  # type: ignore[no-untyped-def]
    ids = tokenizer(prompt, return_tensors="pt")
    with redirect_stderr(io.StringIO()):
        out = model.generate(**ids, max_new_tokens=NEW_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(out[0]))
