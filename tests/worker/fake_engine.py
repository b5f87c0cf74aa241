"""Speaks like `python -m optcore`, and does what the recipe's metadata says: see `_Wishes`.

Finished stages are remembered below `--work/stages`, as the real engine does.
"""

import faulthandler
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

STAGES = ("0-load", "1-ptq", "2-export")


def main() -> None:
    verb, recipe_path, rest = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    recipe = yaml.safe_load(recipe_path.read_text())
    wishes = recipe["metadata"]
    if verb == "fetch":
        return fetch(recipe, Path(options["--work"]))
    faulthandler.register(signal.SIGUSR1)
    if "stubborn" in wishes:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run(recipe, wishes, Path(options["--work"]), Path(options["--out"]))


def say(event: str, **data: object) -> None:
    print(json.dumps({"event": event, **data}), flush=True)


def fetch(recipe: dict, work: Path) -> None:
    token = os.environ.get("HF_TOKEN", "")
    (work / "fetched-with").write_text(token)
    print(f"downloading with {token}", file=sys.stderr)
    say("recipe_resolved", recipe=recipe | {"model": recipe["model"] | {"revision": "c0ffee"}})


def run(recipe: dict, wishes: dict, work: Path, out: Path) -> None:
    say("run_planned", stages=STAGES)
    for stage in STAGES:
        do_stage(stage, recipe, wishes, work)
    if "no_output" in wishes:
        return say("run_finished", digest="0" * 64)
    say("run_finished", digest=write_output(recipe, out))


def do_stage(stage: str, recipe: dict, wishes: dict, work: Path) -> None:
    key = hashlib.sha256(f"{stage}{recipe['seed']}".encode()).hexdigest()
    done = work / "stages" / key
    done.parent.mkdir(parents=True, exist_ok=True)
    with done.with_suffix(".lock").open("w") as lock:  # a second engine waits and finds it done, as with the real one
        fcntl.flock(lock, fcntl.LOCK_EX)
        do_locked(stage, key, done, wishes)


def do_locked(stage: str, key: str, done: Path, wishes: dict) -> None:
    if done.exists():
        return say("stage_finished", stage=stage, key=key, cached=True, seconds=0.0, peak_memory_bytes=0)
    say("stage_started", stage=stage, key=key)
    say("progress", stage=stage, phase="loading", done=1, total=2)
    print(f"working on {stage}", file=sys.stderr, flush=True)
    if stage == "1-ptq":
        misbehave(stage, wishes)
    with (done.parent / "runs.log").open("a") as runs:
        runs.write(f"{stage}\n")
    done.touch()
    say("stage_finished", stage=stage, key=key, cached=False, seconds=0.1, peak_memory_bytes=1024)


def misbehave(stage: str, wishes: dict) -> None:
    """`hold`: wait while the file named there exists, its pid file beside it. `crash`, `fail`: end badly."""
    if "grandchild" in wishes:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(wishes["grandchild"]).write_text(str(child.pid))
    if "sleep" in wishes:
        time.sleep(float(wishes["sleep"]))
    if "traps" in wishes:
        spring(Path(wishes["traps"]), stage)
    if "eat" in wishes:
        bytearray(int(wishes["eat"]))
    if "hang" in wishes:
        hang_in_a_collective()
    if "hold" in wishes:
        Path(wishes["hold"]).with_suffix(".pid").write_text(str(os.getpid()))
        while Path(wishes["hold"]).exists():
            time.sleep(0.05)
    if "crash" in wishes:
        print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
        os._exit(int(wishes["crash"]))
    if "fail" in wishes:
        failure = {"kind": "user_error", "code": "data_unusable", "message": wishes["fail"] + "\0", "stage": stage}
        say("run_failed", failure=failure)
        sys.exit(1)


def spring(traps: Path, stage: str) -> None:
    """Misbehave as a file there says, which is taken away: one engine falls into each trap."""
    if taken(traps / "hang"):
        hang_in_a_collective()
    if taken(traps / "full"):
        try:
            Path("/dev/full").write_bytes(b"x")
        except OSError as error:
            failure = {"kind": "infrastructure", "code": "out_of_disk", "message": str(error), "stage": stage}
            say("run_failed", failure=failure | {"retryable": True})
            sys.exit(1)


def taken(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def hang_in_a_collective() -> None:
    time.sleep(600)


def write_output(recipe: dict, out: Path) -> str:
    temporary = out.with_name(f"{out.name}.partial")
    temporary.mkdir(parents=True)
    contents = {"config.json": b"{}", "environment.json": json.dumps(dict(os.environ)).encode(), "sub/a.txt": b"a"}
    if "megabytes" in recipe["metadata"]:
        contents["model.safetensors"] = os.urandom(int(recipe["metadata"]["megabytes"]) << 20)
    files = []
    for path, data in contents.items():
        (temporary / path).parent.mkdir(exist_ok=True)
        (temporary / path).write_bytes(data)
        files.append({"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    digest = hashlib.sha256(json.dumps([recipe["model"], recipe["seed"]], sort_keys=True).encode()).hexdigest()
    manifest = {"digest": digest, "files": files}
    if "verifiable" in recipe["metadata"]:
        manifest |= {"digest": digest_of(files), "recipe_digest": "r", "source_digest": "s", "data_digest": "d"}
    (temporary / "manifest.json").write_text(json.dumps(manifest))
    temporary.rename(out)
    return digest


def digest_of(files: list) -> str:
    """As in the manifest of a real run."""
    rows = [[file["path"], file["sha256"]] for file in files]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


if __name__ == "__main__":
    main()
