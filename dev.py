#!/usr/bin/env python3
"""The one entry for people: `python3 dev.py demo`, `test`, `check`, `up`, `proofs`, `chaos`, `bench`, `docs`, `audit`.

Needs Python 3.11 or newer and nothing else: no pip, no venv, no make. Each target first makes what it needs in `.venv`:

    choose a Python  ->  make the environment (five ways, in order)  ->  install one of two sets  ->  run the target

What follows the target is passed on: `python3 dev.py test -k house`. A second run starts at once.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "lathe-stamp.json"
WORK = ROOT / ".lathe" / "setup"
LOG = WORK / "setup.log"
CONSTRAINTS = ROOT / "constraints-cpu.txt"
SETS = {
    "demo": ["engine", "server", "worker", "embedded"],
    "full": ["engine", "data", "server", "worker", "embedded", "dev"],
}
# One more process than cores, for much of a test's time is spent waiting for a server. Files go in the order of their
# names: those with few tests are the long ones, and would all come last.
AT_ONCE = ("-n", str(min(os.cpu_count() or 1, 4) + 1), "--dist", "loadfile", "--no-loadscope-reorder")
GPU_PACKAGES = ("torch", "triton", "transformers", "numpy", "safetensors", "tokenizers", "huggingface_hub")


class SetupError(Exception):
    """We cannot go on; the text says what to do."""


# --- the targets ---------------------------------------------------------------------------------------------------


def demo(arguments: list[str]) -> int:
    """One real job from REST to a checkpoint that generates text, in front of your eyes."""
    prepare("demo")
    return become(PYTHON, "-m", "demo", *arguments)


def up(arguments: list[str]) -> int:
    """The whole service on this machine: API, relay, worker and their servers."""
    prepare("demo")
    return become(VENV / "bin" / "lathe", "up", *arguments)


def test(arguments: list[str]) -> int:
    """Every test, on real PostgreSQL, Valkey and Chromium."""
    prepare("full")
    return become(PYTHON, "-m", "pytest", "-m", "not slow", *AT_ONCE, *arguments)


def check(arguments: list[str]) -> int:
    """Style, types, import contracts, the house, docs, containers: what is true without running the product."""
    if arguments:
        raise SetupError(f"`check` takes no arguments, and got {' '.join(arguments)}.")
    prepare("full")
    failed = [name for name, command in checks() if not step(name, command)]
    print(f"check: {'failed: ' + ', '.join(failed) if failed else 'clean'}", flush=True)
    return 1 if failed else 0


def proofs(arguments: list[str], *chosen: str | Path) -> int:
    """The tests that prove claims of the README: slower, marked `proof`."""
    prepare("full")
    return become(PYTHON, "-m", "pytest", "-rP", *(chosen or ("-m", "proof")), *arguments)


def chaos(arguments: list[str]) -> int:
    """Hundreds of faults in random order: no job lost, none with two results."""
    prepare("full")
    return become(PYTHON, "-m", "pytest", "-m", "chaos", "-s", "-n", "0", "tests/chaos", *arguments)


def bench(arguments: list[str]) -> int:
    """Side-by-side measurements."""
    prepare("full")
    return become(PYTHON, "-m", "benchmarks", *arguments)


def proofs_ptq(arguments: list[str]) -> int:
    """The engine's proofs alone: formats, algorithms, memory and exports of post-training quantization."""
    others = (f"--ignore-glob=*_{part}_*" for part in ("training", "restructure", "draft", "exports"))
    return proofs(arguments, "-m", "proof", "tests/optcore", *others)


def proofs_training(arguments: list[str]) -> int:
    """All tests of training, the long ones too: what distillation wins back, in what memory, on how many ranks."""
    return proofs(arguments, *sorted(ROOT.glob("tests/optcore/test_optcore_training_*.py")))


def proofs_restructure(arguments: list[str]) -> int:
    """All tests of restructuring, the long ones too: what each method costs beside its trivial rival."""
    return proofs(arguments, *sorted(ROOT.glob("tests/optcore/test_optcore_restructure_*.py")))


def proofs_drafts(arguments: list[str]) -> int:
    """All tests of speculative drafts, the long ones too: what they guess, and that they change no text."""
    return proofs(arguments, *sorted(ROOT.glob("tests/optcore/test_optcore_draft_*.py")))


def proofs_exports(arguments: list[str]) -> int:
    """All tests of targets, the long ones too: what engines read, how fast, and how near to what was simulated."""
    return proofs(arguments, *sorted(ROOT.glob("tests/optcore/test_optcore_exports*.py")))


def proofs_kernels(arguments: list[str]) -> int:
    """All tests of Triton kernels that need no GPU: the interpreter runs them, the compiler and assembler take them."""
    return proofs(arguments, *sorted(ROOT.glob("tests/optcore/test_optcore_kernels*.py")))


def bench_ptq(arguments: list[str]) -> int:
    """Ours beside installed peers, each in an environment below .lathe/peers that the first run makes."""
    return bench(["ptq", *arguments])


def proofs_docs(arguments: list[str]) -> int:
    """Every recipe of the documentation through the engine, on models small enough for it."""
    return proofs(arguments, "tests/docs")


def docs(arguments: list[str]) -> int:
    """Write the generated pages again, and build the site into .lathe/site."""
    prepare("full")
    return become(PYTHON, "-m", "docs", *arguments)


def audit(arguments: list[str]) -> int:
    """Ask osv.dev for known vulnerabilities of what is installed: 1 when there are, 3 when it could not be asked."""
    prepare("full")
    return become(PYTHON, "-m", "audit", *arguments)


TARGETS = {
    target.__name__.replace("_", "-"): target
    for target in (
        *(demo, test, check, up, proofs, proofs_ptq, proofs_training, proofs_restructure, proofs_drafts),
        *(proofs_exports, proofs_kernels, proofs_docs, chaos, bench, bench_ptq, docs, audit),
    )
}


def checks() -> list[tuple[str, list[str]]]:
    """Name and command of each check whose subject is there."""
    tools = VENV / "bin"
    found = [
        ("style", [f"{tools}/ruff", "check", "."]),
        ("format", [f"{tools}/ruff", "format", "--check", "."]),
        ("types", [f"{tools}/mypy"]),
        ("import contracts", [f"{tools}/lint-imports", "--no-cache"]),
        ("types for consumers", [str(PYTHON), "-m", "pytest", "-q", "tests/lathe/test_lathe_consumer.py"]),
    ]
    pages = [f"tests/test_{name}.py" for name in ("house", "imports", "docs")]
    found.append(("house and docs", [str(PYTHON), "-m", "pytest", "-q", *pages]))
    dockerfiles = sorted(map(str, ROOT.glob("docker/*Dockerfile*")))
    if dockerfiles:
        found.append(("dockerfiles", [f"{tools}/hadolint", *dockerfiles]))
    if (ROOT / "compose.yaml").exists():
        schema = ["--builtin-schema", "vendor.compose-spec", "compose.yaml"]
        found.append(("compose", [f"{tools}/check-jsonschema", *schema]))
    return found


def step(name: str, command: list[str]) -> bool:
    """Run one check where it can be seen."""
    print(f"== {name}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def become(*command: str | Path) -> int:
    """Turn into the program, so that signals reach it and its exit status is ours."""
    os.chdir(ROOT)
    os.execv(command[0], [str(part) for part in command])  # noqa: S606  no shell: a fixed program of ours


# --- the environment -----------------------------------------------------------------------------------------------


def prepare(wanted: str) -> None:
    """An environment with the wanted set of packages in `.venv`."""
    begin = time.monotonic()
    gpu = has_gpu()
    python = choose_python(gpu)
    key = fingerprint(python, gpu)
    if is_ready(key, wanted):
        return
    WORK.mkdir(parents=True, exist_ok=True)
    LOG.write_text("")
    shared = packages_of_base(python) if gpu else {}
    if not environment_works(python):
        say(f"Making .venv with Python {version_of(python)}")
        make_environment(python, system_packages=bool(shared))
    say(f"Installing the {wanted} set into .venv (once, a few minutes; log: {LOG.relative_to(ROOT)})")
    STAMP.unlink(missing_ok=True)
    options = constraints(gpu, shared)
    install(SETS[wanted] + (["gpu"] if gpu and wanted == "full" else []), options)
    if wanted == "full":
        compile_llama_cpp(options)
    STAMP.write_text(json.dumps({"key": key, "set": wanted}))
    say(f"Set up in {time.monotonic() - begin:.0f} s")


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded here."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def choose_python(gpu: bool) -> str:
    """Without a GPU the Python that the constraints were tested with, if it is here; else the one that runs this."""
    mine = getattr(sys, "_base_executable", sys.executable)
    if gpu or sys.version_info[:2] == (3, 11):
        return mine
    other = shutil.which("python3.11")
    return other if other is not None and version_of(other).startswith("3.11.") else mine


def version_of(python: str | Path) -> str:
    """Such as `3.11.2`; empty when it does not run."""
    try:
        return output_of([python, "-c", "import platform; print(platform.python_version())"])
    except (OSError, subprocess.CalledProcessError):
        return ""


def packages_of_base(python: str) -> dict[str, str]:
    """Versions of what a GPU host brings with a CUDA build of torch; empty when it brings none."""
    script = (
        "import importlib.metadata as m, json, torch; assert torch.version.cuda; found = {}\n"
        f"for name in {GPU_PACKAGES!r}:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    try:
        return dict(json.loads(output_of([python, "-c", script])))
    except subprocess.CalledProcessError:
        return {}


def fingerprint(python: str, gpu: bool) -> str:
    """Changes whenever the environment must be made again."""
    files = [path.read_bytes() for path in (ROOT / "pyproject.toml", CONSTRAINTS)]
    return hashlib.sha256(b"\0".join([*files, version_of(python).encode(), bytes([gpu])])).hexdigest()


def is_ready(key: str, wanted: str) -> bool:
    """Whether the stamp says that this, or more, is installed."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (FileNotFoundError, ValueError):
        return False
    return stamp["key"] == key and stamp["set"] in (wanted, "full") and PYTHON.exists()


def environment_works(python: str) -> bool:
    """Whether `.venv` is there, of the right Python, with pip."""
    return version_of(PYTHON) == version_of(python) and works([PYTHON, "-m", "pip", "--version"])


def make_environment(python: str, *, system_packages: bool) -> None:
    """The first of five ways that works here; raises `SetupError`."""
    options = ["--system-site-packages"] if system_packages else []
    for way in (with_venv, with_apt, with_uv, with_downloaded_pip):
        if way(python, options) and environment_works(python):
            return
    raise SetupError(
        "No virtual environment could be made: this Python lacks venv, we may not install it, and uv is not here.\n"
        f"Install python3-venv (Debian) or uv, then run this again. What was tried is in {LOG}."
    )


def with_venv(python: str, options: list[str]) -> bool:
    """1. The standard library's way; Debian leaves out the half that brings pip."""
    return works([python, "-m", "venv", "--clear", *options, VENV])


def with_apt(python: str, options: list[str]) -> bool:
    """2. Root may install the missing half."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    package = "python{}.{}-venv".format(*version_of(python).split("."))
    install_package = ["apt-get", "install", "-y", "--no-install-recommends", package]
    return works(["apt-get", "update"]) and works(install_package) and with_venv(python, options)


def with_uv(python: str, options: list[str]) -> bool:
    """3. uv, where the user has it; packages still come by pip, which obeys the machine's settings."""
    return shutil.which("uv") is not None and works(["uv", "venv", "--clear", "--seed", "-p", python, *options, VENV])


def with_downloaded_pip(python: str, options: list[str]) -> bool:
    """4. Without root: pip's wheel out of Debian's package, fetched by apt into a folder of ours."""
    if shutil.which("apt-get") is None or not works([python, "-m", "venv", "--clear", "--without-pip", *options, VENV]):
        return False
    apt = WORK / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "-o", f"Dir::State={apt}/state", "-o", f"Dir::Cache={apt}/cache"]
    command += ["-o", "Dir::State::status=/var/lib/dpkg/status"]
    if not (works([*command, "update"]) and works([*command, "download", "python3-pip-whl"], cwd=apt)):
        return False
    if not all(works(["dpkg", "-x", package, apt]) for package in apt.glob("*.deb")):
        return False
    wheels = sorted(apt.glob("usr/share/python-wheels/pip-*.whl"))
    return bool(wheels) and works([PYTHON, f"{wheels[-1]}/pip", "install", "pip", "setuptools"])


def constraints(gpu: bool, shared: dict[str, str]) -> list[str]:
    """Options for pip: the tested versions without a GPU; with one, what the host brings is kept as it is."""
    if not gpu:
        return ["-c", str(CONSTRAINTS)]
    kept = WORK / "host-packages.txt"
    kept.write_text("".join(f"{name}=={version}\n" for name, version in shared.items()))
    return ["-c", str(kept)]


def install(extras: list[str], options: list[str]) -> None:
    """This checkout, editable, with its extras; raises `SetupError` with the end of the log."""
    project = f"{ROOT}[{','.join(extras)}]"
    if not works([PYTHON, "-m", "pip", "install", "--progress-bar", "off", *options, "-e", project]):
        end = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
        raise SetupError(f"pip failed:\n{end}\nThe whole log is in {LOG}. Is a package index within reach?")


def compile_llama_cpp(options: list[str]) -> None:
    """The engine that loads GGUF files, where a compiler is here; its tests say that they are left out elsewhere."""
    say("Compiling llama.cpp (once, minutes)")
    if not works([PYTHON, "-m", "pip", "install", "--progress-bar", "off", *options, "-e", f"{ROOT}[llama-cpp]"]):
        say(f"llama.cpp was not compiled: its tests will be skipped. Is a C++ compiler here? ({LOG.relative_to(ROOT)})")


# --- small tools ---------------------------------------------------------------------------------------------------


def works(command: Sequence[str | Path], cwd: Path = ROOT) -> bool:
    """Run a step of the set-up; what it prints goes to the log."""
    WORK.mkdir(parents=True, exist_ok=True)
    quiet = {"DEBIAN_FRONTEND": "noninteractive", "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    with LOG.open("ab") as log:
        log.write(f"$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        try:
            done = subprocess.run(command, cwd=cwd, env={**os.environ, **quiet}, check=False, **streams)
        except OSError as error:
            log.write(f"{error}\n".encode())
            return False
    return done.returncode == 0


def output_of(command: Sequence[str | Path]) -> str:
    """What a command prints; raises `CalledProcessError`."""
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()


def say(text: str) -> None:
    """Tell the person what goes on."""
    print(f"dev.py: {text}", flush=True)


def usage() -> str:
    """The targets and their first lines."""
    lines = [f"  {name:20}{(target.__doc__ or '').splitlines()[0]}" for name, target in TARGETS.items()]
    return "\n".join(["usage: python3 dev.py TARGET [ARGUMENT...]", *lines])


def main(arguments: list[str]) -> int:
    """Run one target."""
    if sys.version_info < (3, 11):  # noqa: UP036  whoever starts this may have an older one
        print(f"Lathe needs Python 3.11 or newer; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 2
    if not arguments or arguments[0] not in TARGETS:
        print(usage(), file=sys.stderr)
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    try:
        return TARGETS[arguments[0]](arguments[1:])
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
