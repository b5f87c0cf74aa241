"""The artifact store, in a folder and in a real S3 server: the same answers from both."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from fixtures.s3 import BUCKET, S3, SECRET_KEY

from api.errors import StoreAway
from api.files import ArtifactStore, Bucket, Folder
from api.files.objects import BLOCK_bytes

pytestmark = pytest.mark.integration

LARGE = os.urandom(2 * BLOCK_bytes + 5)
FILES = {
    "job_a/1/config.json": b"{}",
    "job_a/1/plots/a b.svg": b"<svg/>",
    "job_a/1/empty": b"",
    "job_a/2/model.safetensors": LARGE,
    "job_a/12/config.json": b"[]",
    "job_ab/1/config.json": b"{ }",
}


def _fill_folder(root: Path) -> Folder:
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "job_a/1.part-7").mkdir()
    (root / "job_a/1.part-7/half").touch()
    return Folder(root)


def _fill_bucket(url: str) -> Bucket:
    bucket = Bucket(url, allow_http=True)
    for name, data in FILES.items():
        blocks = [data[start : start + BLOCK_bytes] for start in range(0, len(data), BLOCK_bytes)]
        bucket.send(name, blocks, len(data), hashlib.sha256(data).hexdigest())
    return bucket


@pytest.fixture
def bucket_url(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    if request.param == "folder":
        yield _fill_folder(tmp_path / "artifacts")
    else:
        yield _fill_bucket(request.getfixturevalue("bucket_url"))


def _read(store: ArtifactStore, name: str, begin: int, end: int) -> bytes:
    return b"".join(store.read(name, begin, end))


def test_what_is_stored_is_read_whole_and_in_ranges(store: ArtifactStore) -> None:
    for name, data in FILES.items():
        assert store.size_bytes(name) == len(data)
        assert _read(store, name, 0, len(data)) == data
    name = "job_a/2/model.safetensors"
    for begin, end in ((0, 1), (BLOCK_bytes - 1, BLOCK_bytes + 1), (len(LARGE) - 3, len(LARGE)), (5, 5)):
        assert _read(store, name, begin, end) == LARGE[begin:end]
    assert max(map(len, store.read(name, 0, len(LARGE)))) == BLOCK_bytes


@pytest.mark.parametrize(
    "name", ["job_a/1/absent", "job_a/1", "job_a/9/x", "job_a/1/../2/x", "job_a//x", "job_a/1/\x00"]
)
def test_what_is_not_there_has_no_size(store: ArtifactStore, name: str) -> None:
    assert store.size_bytes(name) is None


def test_what_is_removed_is_gone_and_nothing_beside_it(store: ArtifactStore, tmp_path: Path) -> None:
    def left() -> set[str]:
        return {name for name in FILES if store.size_bytes(name) is not None}

    store.remove("job_a/1")
    assert left() == {name for name in FILES if not name.startswith("job_a/1/")}
    assert not (tmp_path / "artifacts/job_a/1.part-7").exists()
    store.remove("job_a")
    assert left() == {"job_ab/1/config.json"}
    store.remove("job_a")
    store.remove("job_none/3")
    assert left() == {"job_ab/1/config.json"}


def test_a_link_out_of_the_folder_is_no_file(tmp_path: Path) -> None:
    folder = _fill_folder(tmp_path / "artifacts")
    (tmp_path / "secret").write_text("secret")
    (folder.root / "job_a/1/link").symlink_to(tmp_path / "secret")
    (folder.root / "job_a/1/other").symlink_to(folder.root / "job_a/2/model.safetensors")
    assert folder.size_bytes("job_a/1/link") is None
    assert folder.size_bytes("job_a/1/other") is None


def test_only_the_same_bytes_count_as_sent(bucket_url: str) -> None:
    bucket = _fill_bucket(bucket_url)
    name, digest = "job_a/2/model.safetensors", hashlib.sha256(LARGE).hexdigest()
    assert bucket.holds(name, len(LARGE), digest)
    assert not bucket.holds(name, len(LARGE) - 1, digest)
    assert not bucket.holds(name, len(LARGE), "0" * 64)
    assert not bucket.holds("job_a/2/absent", 1, digest)


def test_an_upload_that_breaks_off_leaves_nothing(bucket_url: str) -> None:
    def blocks() -> Iterator[bytes]:
        yield LARGE[:BLOCK_bytes]
        yield LARGE[BLOCK_bytes : 2 * BLOCK_bytes]
        raise RuntimeError("the disk broke")

    bucket = Bucket(bucket_url, allow_http=True)
    with pytest.raises(RuntimeError, match="the disk broke"):
        bucket.send("job_c/1/model", blocks(), len(LARGE), "0" * 64)
    assert bucket.size_bytes("job_c/1/model") is None


def test_a_refusal_and_an_absence_are_said_without_a_secret(
    s3: S3, bucket_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-key")
    with pytest.raises(StoreAway, match="403, SignatureDoesNotMatch") as refused:
        Bucket(bucket_url, allow_http=True).send("job_a/1/x", [b"x"], 1, "0" * 64)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreAway) as away:
        Bucket(bucket_url, allow_http=True).size_bytes("job_a/1/x")
    told = f"{refused.value.message} {refused.value.__cause__} {away.value.message} {caplog.text}"
    for secret in (SECRET_KEY, "wrong-secret-key", s3.environ["AWS_ACCESS_KEY_ID"], s3.url):
        assert secret not in told


def test_plain_http_is_refused_unless_the_operator_allows_it(bucket_url: str) -> None:
    with pytest.raises(StoreAway, match="BadScheme"):
        Bucket(bucket_url).size_bytes("job_a/1/x")


def test_one_store_is_one_prefix(s3: S3, bucket_url: str) -> None:
    _fill_bucket(bucket_url)
    Bucket(bucket_url + "-beside", allow_http=True).send("job_a/1/config.json", [b"{}"], 2, "0" * 64)
    Bucket(bucket_url, allow_http=True).remove("job_a")
    assert Bucket(bucket_url + "-beside", allow_http=True).size_bytes("job_a/1/config.json") == 2
    assert obstore.head(s3.client(), bucket_url.removeprefix(f"s3://{BUCKET}/") + "/job_ab/1/config.json")["size"] == 3
