"""Speaks like `python -m optcore`; the recipe's metadata says how it ends. Its `run` writes a small artifact."""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import yaml

COMMAND = f"{sys.executable} {Path(__file__).absolute()}"
"""What LATHE_ENGINE_COMMAND is set to."""
MEASUREMENTS = [
    {
        "name": "bytes",
        "title": "Size on disk",
        "unit": "bytes",
        "source": 10_000_000,
        "result": 3_000_000,
        "better": "lower",
    },
    {
        "name": "kl",
        "title": "KL to source",
        "unit": "nats",
        "source": None,
        "baseline": 0.2,
        "result": 0.1,
        "better": "lower",
    },
]


def say(event: str, **data: object) -> None:
    print(json.dumps({"event": event, **data}), flush=True)


def main() -> None:
    verb, options = sys.argv[1], dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
    recipe = yaml.safe_load(Path(sys.argv[2]).read_text())
    if verb == "fetch":
        say("run_planned", stages=["0-fetch", "1-ptq"])
        say("recipe_resolved", recipe={**recipe, "seed": 7})
        return
    print("a word that is no event", flush=True)
    say("run_planned", stages=["0-fetch", "1-ptq"])
    for name in ("0-fetch", "1-ptq"):
        work_on(name, recipe["metadata"])
    say("run_finished", digest=write(recipe, Path(options["--out"])))


def work_on(name: str, wishes: dict) -> None:
    say("stage_started", stage=name, key="k" * 64)
    print(f"working on {name}", file=sys.stderr, flush=True)
    say("progress", stage=name, phase="calibrating", done=1, total=2)
    if name == "1-ptq":
        if "hold" in wishes:
            Path(wishes["hold"]).with_suffix(".pid").write_text(str(os.getpid()))
            while Path(wishes["hold"]).exists():
                time.sleep(0.02)
            print("held no longer", file=sys.stderr, flush=True)
        if "fail" in wishes:
            failure = {"kind": "user_error", "code": "data_unusable", "message": wishes["fail"], "stage": name}
            say("run_failed", failure={**failure, "field": "/calibration", "remedy": "use other text"})
            sys.exit(1)
        if "crash" in wishes:
            print("the last words", file=sys.stderr, flush=True)
            os._exit(7)
    say("stage_finished", stage=name, key="k" * 64, cached=False, seconds=0.1, peak_memory_bytes=2_000_000)


def write(recipe: dict, out: Path) -> str:
    draft = out.with_name(f"{out.name}.partial")
    draft.mkdir(parents=True)
    files = {
        "config.json": b"{}",
        "sub/weights.bin": b"w" * 100_000,
        "report.json": json.dumps({"measurements": MEASUREMENTS, "environment": sorted(os.environ)}).encode(),
        "report.html": b"<p>report</p>",
        "recipe.yaml": yaml.safe_dump(recipe).encode(),
    }
    listed = []
    for path, data in files.items():
        (draft / path).parent.mkdir(exist_ok=True)
        (draft / path).write_bytes(data)
        listed.append({"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    rows = [[file["path"], file["sha256"]] for file in listed if not file["path"].startswith("re")]  # no documents
    digest = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
    digests = {"digest": digest, "recipe_digest": "r", "source_digest": "s", "data_digest": "d"}
    (draft / "manifest.json").write_text(json.dumps({**digests, "files": listed}))
    draft.rename(out)
    return digest


if __name__ == "__main__":
    main()
