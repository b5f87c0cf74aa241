"""Commands about a folder that holds an artifact: is it what was made, and by whom?"""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from lathe.cli.group import explain
from lathe.cli.output import errors, print_json, print_table
from lathe.cli.session import AsJson
from optcore import signing
from optcore.manifest import SIGNATURE, ManifestUnreadable, read_manifest
from optcore.verify import Finding
from optcore.verify import verify as findings_of

ArtifactPath = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `run` or `download` wrote.")]
PrivateKey = Annotated[Path, typer.Option(help="PEM file of a private elliptic-curve key.")]
SignatureState = Literal["none", "not checked", "good", "bad"]
_SAID: dict[SignatureState, str] = {
    "none": "not signed: hashes show damage and careless edits, not who made it",
    "not checked": "signed, not checked: name the signer's public key with --key",
    "good": "signed by the owner of this key",
    "bad": "the signature does not hold",
}


def verify(
    folder: ArtifactPath,
    key: Annotated[Path | None, typer.Option(help="PEM file of the signer's public key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of an artifact against its manifest, and with --key its signature.

    Exit with 0 when all is as it was made, 1 when something is not, 2 when the folder is no artifact.
    """
    try:
        digest, found = read_manifest(folder).digest, _files_of(folder)
    except ManifestUnreadable as error:
        explain(error.failure())
        raise typer.Exit(2) from error
    by_key = signing.verify_signature(folder, key) if key else ()
    found = (*found, *by_key)
    state = _state(folder, key, by_key)
    if as_json:
        rows = [each.model_dump() for each in found]
        print_json({"folder": str(folder), "digest": digest, "signature": state, "findings": rows})
    else:
        if found:
            print_table(("file", "finding", ""), [(each.path, each.kind, each.message) for each in found])
        errors.print(_SAID[state], markup=False, highlight=False, soft_wrap=True)
        said = f"{len(found)} findings" if found else "every file is as the manifest says"
        errors.print(f"{folder}: {said}; digest {digest}", markup=False, highlight=False, soft_wrap=True)
    if found:
        raise typer.Exit(1)


def sign(folder: ArtifactPath, key: PrivateKey) -> None:
    """Sign an artifact: write `model.sig`, in the OpenSSF's format, over every file. No server is asked."""
    signing.sign(folder, key)
    errors.print(f"written to {folder / SIGNATURE}", markup=False, highlight=False, soft_wrap=True)


def _files_of(folder: Path) -> tuple[Finding, ...]:
    """What is found, with a bar while large files are read and somebody looks."""
    columns = (TextColumn("hashing"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task("")
        return findings_of(folder, lambda done, total: progress.update(task, completed=done, total=total))


def _state(folder: Path, key: Path | None, found: tuple[Finding, ...]) -> SignatureState:
    if not signing.is_signed(folder):
        return "none"
    if key is None:
        return "not checked"
    return "bad" if found else "good"
