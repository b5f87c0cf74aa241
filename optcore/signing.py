"""Signatures over a whole artifact, in the format of the OpenSSF (https://github.com/ossf/model-signing-spec).

`model.sig` is a Sigstore bundle with a DSSE envelope around an in-toto statement that lists the SHA-256 of every file,
signed by ECDSA with a key of the operator's (P-256, P-384 or P-521). With a key, no server is asked for anything; any
other tool that knows the format can check it (`model_signing verify key`).
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optcore.errors import Kind, OptError, folder_error
from optcore.extras import how_to_install
from optcore.manifest import SIGNATURE
from optcore.verify import LEFT_BY_DOWNLOADS, Finding, verify

MAX_SIGNATURE_bytes = 64 * 1024 * 1024
"""A hundred bytes of statement a file, in base64: far above any artifact's."""
_REMEDY = "give the PEM file of an elliptic-curve key, as `openssl ecparam -name prime256v1 -genkey -noout` makes one"

_OTHER_FILES = re.compile(r"""Hash mismatch for \\*'(.+?)\\*':|(?:Extra|Missing) files .+?': ([^"\]]+)""")
"""What the library says of files beside the bytes of their digests."""


class SigningUnavailable(OptError):
    """The library that signs is not installed."""

    code = "signing_unavailable"
    kind: Kind = "infrastructure"


class KeyUnusable(OptError):
    """A key file that cannot be read, or holds no key for this."""

    code = "key_unusable"
    kind: Kind = "infrastructure"


class NotSigned(OptError):
    """A folder that is not what its manifest says, which nobody should put a name to."""

    code = "not_signed"
    kind: Kind = "user_error"


def sign(folder: Path, key: Path) -> None:
    """Write `model.sig`, over every file of an artifact, beside them; an earlier one is replaced.

    `key` is the PEM file of a private key. Raises `SigningUnavailable`, `KeyUnusable`, `ManifestUnreadable` and, for a
    folder in which `verify` finds something, `NotSigned`.
    """
    config = _signer(key)
    if key.resolve().is_relative_to(folder.resolve()):
        raise KeyUnusable(f"the private key {key} lies in what would be signed", remedy="keep it elsewhere")
    if found := verify(folder):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        said = f"{folder} is not signed: {found[0].path} {found[0].message}{more}"
        raise NotSigned(said, remedy="sign what was made, before anything changes it")
    hashing = _library().hashing.Config().set_ignored_paths(paths=[SIGNATURE, *LEFT_BY_DOWNLOADS])
    part = folder.parent / f".{folder.name}.{SIGNATURE}.part"  # in the folder, a crash would leave a file too many
    try:
        config.set_hashing_config(hashing).sign(folder, part)
        part.replace(folder / SIGNATURE)
    except OSError as error:
        raise folder_error(error) from error


def check_key(key: Path) -> None:
    """Raise what `sign` would of the library and the key, before any work is done that is to be signed."""
    _signer(key)


def is_signed(folder: Path) -> bool:
    """Whether there is a signature, good or not."""
    return os.path.lexists(folder / SIGNATURE)


def verify_signature(folder: Path, key: Path) -> tuple[Finding, ...]:
    """Whether `model.sig` was made of this very folder by the owner of a public key (a PEM file).

    Reads all files once. Raises `SigningUnavailable` and `KeyUnusable`; everything that is wrong with the signature
    itself is a finding.
    """
    library = _library()
    with _key_errors(key):
        config = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
    path = folder / SIGNATURE
    if not is_signed(folder):
        return (_finding("is not there, and a key was given to check it with"),)
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_SIGNATURE_bytes:
        return (_finding("is no plain file of a signature's size; it was not opened"),)
    try:
        config.verify(folder, path)
    except Exception as error:  # parsers of several libraries, each with errors of its own, meet a stranger's bytes
        return (_finding(f"does not hold for this folder and this key: {_words(error)}"),)
    return ()


def _signer(key: Path) -> Any:
    library = _library()
    with _key_errors(key):
        return library.signing.Config().use_elliptic_key_signer(private_key=key)


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        said = f"signatures need the package model-signing, which is not installed here ({error})"
        raise SigningUnavailable(said, remedy=how_to_install("sign")) from error
    return model_signing


@contextmanager
def _key_errors(key: Path) -> Iterator[None]:
    """What is wrong with a key, without a word of what is in it."""
    try:
        yield
    except OSError as error:
        raise KeyUnusable(f"cannot read the key {key}: {error.strerror}", remedy=_REMEDY) from error
    except TypeError as error:  # what the library says of a key that asks for a password
        said = f"{key} is encrypted; nobody is there to type its password"
        raise KeyUnusable(
            said, remedy="keep it without one, in a file that only the signer's account can read"
        ) from error
    except Exception as error:  # each kind of wrong key has an error of its own
        raise KeyUnusable(f"{key} holds no key of this kind in PEM", remedy=_REMEDY) from error


def _finding(message: str) -> Finding:
    return Finding(kind="signature", path=SIGNATURE, message=message)


def _words(error: Exception) -> str:
    if type(error).__name__ == "InvalidSignature":
        return "the key did not make it"
    text = " ".join(str(error).split())
    if named := _OTHER_FILES.findall(text):
        return f"it is of other files: {', '.join(changed or listed for changed, listed in named)}"[:500]
    return f"{type(error).__name__}: {text}"[:300]
