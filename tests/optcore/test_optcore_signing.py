"""Signatures over a folder: made by one key, checked by its other half, by us and by the OpenSSF's own tool."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.artifacts import write_manifest
from fixtures.keys import Keys, MakeKeys

from optcore.manifest import SIGNATURE, ManifestUnreadable
from optcore.signing import KeyUnusable, NotSigned, SigningUnavailable, check_key, is_signed, sign, verify_signature
from optcore.verify import verify


@pytest.fixture
def signed(artifact: Path, keys: Keys) -> Path:
    sign(artifact, keys.private)
    return artifact


def said(folder: Path, keys: Keys) -> str:
    (found,) = verify_signature(folder, keys.public)
    assert (found.kind, found.path) == ("signature", SIGNATURE)
    return found.message


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_a_signed_folder_holds_wherever_it_lies(artifact: Path, make_keys: MakeKeys, curve: str) -> None:
    keys = make_keys(curve)
    assert not is_signed(artifact)
    sign(artifact, keys.private)
    moved = artifact.rename(artifact.with_name("another-name"))
    (moved / ".cache").mkdir()
    (moved / ".cache" / "etag").write_text("left by a download")
    assert is_signed(moved)
    assert verify(moved) == verify_signature(moved, keys.public) == ()


def test_the_tool_of_the_openssf_agrees(signed: Path, keys: Keys) -> None:
    words = ["-m", "model_signing", "verify", "key", str(signed), "--signature", str(signed / SIGNATURE)]
    command = [sys.executable, *words, "--public_key", str(keys.public), "--ignore-paths", str(signed / SIGNATURE)]
    good = subprocess.run(command, capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    (signed / "config.json").write_text("others")
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_no_server_is_asked(artifact: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sign(artifact, keys.private)
    assert verify_signature(artifact, keys.public) == ()


def test_another_key_is_found(signed: Path, make_keys: MakeKeys) -> None:
    assert "Key mismatch" in said(signed, make_keys())


def test_an_altered_signature_is_found(signed: Path, keys: Keys) -> None:
    path = signed / SIGNATURE
    bundle = json.loads(path.read_text())
    signature = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = ("B" if signature[20] == "A" else "A").join(
        (signature[:20], signature[21:])
    )
    path.write_text(json.dumps(bundle))
    assert "the key did not make it" in said(signed, keys)


def test_a_statement_that_was_not_signed_is_found(signed: Path, keys: Keys, make_keys: MakeKeys) -> None:
    """A stranger's statement under the signer's own signature and name."""
    good = json.loads((signed / SIGNATURE).read_text())
    (signed / "config.json").write_text("others")
    write_manifest_again(signed)
    sign(signed, make_keys().private)
    theirs = json.loads((signed / SIGNATURE).read_text())
    theirs["verificationMaterial"] = good["verificationMaterial"]
    theirs["dsseEnvelope"]["signatures"] = good["dsseEnvelope"]["signatures"]
    (signed / SIGNATURE).write_text(json.dumps(theirs))
    assert verify(signed) == ()
    assert "the key did not make it" in said(signed, keys)


def write_manifest_again(folder: Path) -> None:
    for name in (SIGNATURE, "manifest.json"):
        (folder / name).unlink(missing_ok=True)
    write_manifest(folder)


def test_a_signature_of_another_folder_is_found(signed: Path, keys: Keys, tmp_path: Path) -> None:
    other = shutil.copytree(signed, tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"other weights")
    write_manifest_again(other)
    shutil.copy(signed / SIGNATURE, other / SIGNATURE)
    assert verify(other) == (), "who can write the folder can write a manifest that fits"
    assert said(other, keys).endswith("it is of other files: manifest.json, model.safetensors")
    (other / "config.json").unlink()
    (other / "new.py").write_text("import os")
    assert said(other, keys).endswith("other files: new.py, config.json, manifest.json, model.safetensors")


@pytest.mark.parametrize("text", ["", "{}", "[]", "[" * 100_000, '{"verificationMaterial": {}, "dsseEnvelope": 1}'])
def test_what_is_no_signature_is_a_finding(signed: Path, keys: Keys, text: str) -> None:
    (signed / SIGNATURE).write_text(text)
    assert "does not hold" in said(signed, keys)


def test_no_signature_where_one_was_asked_for_is_a_finding(artifact: Path, keys: Keys) -> None:
    assert "is not there" in said(artifact, keys)
    (artifact / SIGNATURE).symlink_to(keys.public)
    assert "not opened" in said(artifact, keys)


def test_a_signature_is_replaced_and_nothing_is_left_beside_it(signed: Path, make_keys: MakeKeys) -> None:
    around = sorted(path.name for path in signed.parent.iterdir())
    keys = make_keys()
    sign(signed, keys.private)
    assert verify_signature(signed, keys.public) == ()
    assert sorted(path.name for path in signed.parent.iterdir()) == around


def test_nobody_signs_what_is_not_what_was_made(artifact: Path, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(ManifestUnreadable):
        sign(tmp_path, keys.private)
    (artifact / "config.json").write_text("others")
    with pytest.raises(NotSigned, match=r"config\.json has 6 bytes"):
        sign(artifact, keys.private)
    assert not is_signed(artifact)


def test_a_private_key_is_not_signed_into_what_is_published(artifact: Path, keys: Keys) -> None:
    inside = shutil.copy(keys.private, artifact / "signer.pem")
    with pytest.raises(KeyUnusable, match="lies in what would be signed"):
        sign(artifact, Path(inside))


def test_a_key_that_is_none_is_refused_without_a_word_of_it(make_keys: MakeKeys, keys: Keys, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    locked = make_keys(password=b"p").private
    with pytest.raises(KeyUnusable, match="encrypted"):
        check_key(locked)
    with pytest.raises(KeyUnusable, match="No such file"):
        check_key(tmp_path / "absent.pem")
    odd = tmp_path / "odd.pem"
    odd.write_text("the secret words")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    others = (ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048))
    for number, key in enumerate(others):
        (tmp_path / f"{number}.pem").write_bytes(key.private_bytes(*form))
    for path in (odd, keys.public, make_keys("SECP256K1").private, tmp_path / "0.pem", tmp_path / "1.pem"):
        with pytest.raises(KeyUnusable, match="no key of this kind") as raised:
            check_key(path)
        assert "secret words" not in f"{raised.value} {raised.value.remedy}"


def test_without_the_library_the_extra_is_named(artifact: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for ask in (lambda: check_key(keys.private), lambda: verify_signature(artifact, keys.public)):
        with pytest.raises(SigningUnavailable) as raised:
            ask()
        assert "pip install '.[sign]'" in raised.value.remedy
