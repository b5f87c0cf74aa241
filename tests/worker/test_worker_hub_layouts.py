"""Several results of one run: in folders, on branches or in repositories, all of them or the push is not done."""

import json
from pathlib import Path

import pytest
from fixtures.hub import OWNER_TOKEN, HubPeer
from fixtures.keys import Keys

import worker.hub
from optcore.errors import HubUnavailable
from optcore.manifest import SIGNATURE, Artifact, checkpoint_digest, list_files, read_manifest
from optcore.references import Publish
from optcore.signing import sign, verify_signature
from optcore.verify import verify
from worker.hub import Published, publish_folder
from worker.hub_errors import PublishRefused
from worker.hub_signing import Signer
from worker.hub_target import Memory

VARIANTS = ("fp8-compressed-tensors", "int4-awq")
OWN = {"config.json", "manifest.json", "model.safetensors"}


@pytest.fixture(autouse=True)
def _this_hub(hub: HubPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(worker.hub, "WAITS_seconds", (0.01, 0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A main result and two more, as the engine lays them out."""
    made = tmp_path / "artifact"
    for variant in VARIANTS:
        _checkpoint(made / "also" / variant, variant)
    _checkpoint(made, "main")
    return made


def _checkpoint(folder: Path, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content.encode() * 1000)
    (folder / "config.json").write_text(json.dumps({"of": content}))
    files = tuple(list_files(folder))
    digests = {"recipe_digest": "r", "source_digest": "s", "data_digest": "d"}
    Artifact(digest=checkpoint_digest(files), files=files, **digests).save(folder)


def publish(
    folder: Path, layout: str, memory: Memory | None = None, signer: Signer | None = None, **more: object
) -> Published:
    place = Publish.model_validate({"repo_id": "me/small", "private": False, "layout": layout} | more)
    return publish_folder(folder, place, OWNER_TOKEN, memory=memory or Memory({}, lambda _: None), sign=signer)


def files(hub: HubPeer, repo_id: str, revision: str = "main") -> set[str]:
    return set(hub.api().list_repo_files(repo_id, revision=revision)) - {".gitattributes"}


def config(hub: HubPeer, repo_id: str, revision: str = "main", path: str = "config.json") -> str:
    return str(json.loads(Path(hub.api().hf_hub_download(repo_id, path, revision=revision)).read_text())["of"])


def listed(hub: HubPeer, repo_id: str) -> set[str]:
    document = json.loads(Path(hub.api().hf_hub_download(repo_id, "manifest.json")).read_text())
    return {row["path"] for row in document["files"]}


def test_folders_of_one_repository_change_together(hub: HubPeer, folder: Path) -> None:
    published = publish(folder, "folder")
    assert files(hub, "me/small") == OWN | {f"also/{variant}/{name}" for variant in VARIANTS for name in OWN}
    assert len(hub.api().list_repo_commits("me/small")) == 2
    assert publish(folder, "folder") == published


def test_results_of_an_earlier_model_go_and_strangers_stay(hub: HubPeer, folder: Path) -> None:
    old = {f"also/nvfp4-awq/{name}": "old" for name in OWN} | {"also/int4-awq/model-00002.safetensors": "old"}
    hub.put("me/small", {**old, "model-00001.safetensors": "old", "also/notes/a.safetensors": "theirs"})
    publish(folder, "folder")
    ours = OWN | {f"also/{variant}/{name}" for variant in VARIANTS for name in OWN}
    assert files(hub, "me/small") == ours | {"also/notes/a.safetensors"}


def test_branches_hold_a_whole_checkpoint_each(hub: HubPeer, folder: Path) -> None:
    hub.put("me/small", {"NOTES.md": "by hand", "model-00001.safetensors": b"old"})
    published = publish(folder, "branch")
    heads = {ref.name: ref.target_commit for ref in hub.api().list_repo_refs("me/small").branches}
    assert set(heads) == {"main", *VARIANTS}
    assert published.commit == heads["main"]
    assert files(hub, "me/small") == OWN | {"NOTES.md"}
    assert listed(hub, "me/small") == OWN - {"manifest.json"}
    for variant in VARIANTS:
        assert files(hub, "me/small", variant) == OWN, "nothing of main under another name"
        assert config(hub, "me/small", variant) == variant
    assert publish(folder, "branch") == published
    assert {one.status for one in hub.api().get_repo_discussions("me/small")} == {"merged"}
    assert len(list(hub.api().get_repo_discussions("me/small"))) == 3


@pytest.mark.parametrize("via", ["pull_request", "branch"])
def test_repositories_hold_a_whole_checkpoint_each(hub: HubPeer, folder: Path, via: str) -> None:
    published = publish(folder, "repo", via=via)
    assert published.url.startswith(f"{hub.url}/me/small/tree/")
    assert (files(hub, "me/small"), config(hub, "me/small")) == (OWN, "main")
    for variant in VARIANTS:
        assert (files(hub, f"me/small-{variant}"), config(hub, f"me/small-{variant}")) == (OWN, variant)
    assert publish(folder, "repo", via=via) == published
    for repo_id in ("me/small", *(f"me/small-{variant}" for variant in VARIANTS)):
        assert len(hub.api().list_repo_commits(repo_id)) == 2


def _copy(hub: HubPeer, repo_id: str, folder: Path) -> Path:
    hub.api().snapshot_download(repo_id, local_dir=folder)
    return folder


def test_one_folder_keeps_the_signature_of_the_whole(hub: HubPeer, folder: Path, keys: Keys, tmp_path: Path) -> None:
    sign(folder, keys.private)
    publish(folder, "folder", signer=Signer(keys.private, tmp_path / "scratch"))
    copy = _copy(hub, "me/small", tmp_path / "copy")
    assert (copy / SIGNATURE).read_bytes() == (folder / SIGNATURE).read_bytes()
    assert verify(copy) == verify_signature(copy, keys.public) == ()


def test_results_that_part_are_signed_one_by_one(hub: HubPeer, folder: Path, keys: Keys, tmp_path: Path) -> None:
    sign(folder, keys.private)
    publish(folder, "repo", signer=Signer(keys.private, tmp_path / "scratch"))
    for name in ("small", *(f"small-{variant}" for variant in VARIANTS)):
        copy = _copy(hub, f"me/{name}", tmp_path / name)
        assert verify(copy) == verify_signature(copy, keys.public) == ()
    assert read_manifest(tmp_path / "small").part_of == read_manifest(folder).digest
    assert not (tmp_path / "scratch").exists()


def test_a_part_has_no_signature_of_the_whole(hub: HubPeer, folder: Path, keys: Keys, tmp_path: Path) -> None:
    sign(folder, keys.private)
    hub.put("me/small", {SIGNATURE: "of an earlier model", "model.gguf": "an earlier model", "Q2.gguf": "theirs"})
    publish(folder, "repo")
    hub.api().delete_file("Q2.gguf", "me/small")
    copy = _copy(hub, "me/small", tmp_path / "copy")
    assert not (copy / SIGNATURE).exists()
    assert verify(copy) == ()


def test_none_is_merged_before_all_are_there_and_the_main_one_is_last(hub: HubPeer, folder: Path) -> None:
    hub.fail("POST .*/commit/main", 503, times=100)
    memory = Memory({}, lambda _: None)
    with pytest.raises(HubUnavailable):
        publish(folder, "branch", memory)
    assert [line for line in hub.requests if line.endswith("/merge")] == []
    hub.app.state.faults.waiting.clear()
    hub.fail("POST .*/discussions/3/merge", 503, times=100)
    with pytest.raises(HubUnavailable):
        publish(folder, "branch", memory)
    assert files(hub, "me/small") == set()
    assert memory.numbers == {"me/small@int4-awq": 1, "me/small@fp8-compressed-tensors": 2, "me/small@main": 3}
    hub.app.state.faults.waiting.clear()
    publish(folder, "branch", memory)
    assert files(hub, "me/small") == OWN
    assert [one.status for one in hub.api().get_repo_discussions("me/small")] == ["merged"] * 3


def test_two_results_never_share_a_branch(hub: HubPeer, folder: Path) -> None:
    with pytest.raises(PublishRefused, match="two results"):
        publish(folder, "branch", revision="int4-awq")
    assert hub.requests == []


def test_a_draft_goes_with_the_model_and_an_earlier_one_does_not_stay(hub: HubPeer, folder: Path) -> None:
    (folder / "draft").mkdir()
    for name in ("draft.json", "model.safetensors"):
        (folder / "draft" / name).write_text("new")
    old = {"draft/draft.json": "old", "draft/medusa.safetensors": "old"}
    hub.put("me/small", old)
    publish(folder, "repo")
    assert files(hub, "me/small") == OWN | {"draft/draft.json", "draft/model.safetensors"}
    hub.put("me/theirs", {"draft/medusa.safetensors": "by hand"})
    publish(folder, "repo", repo_id="me/theirs")
    assert "draft/medusa.safetensors" in files(hub, "me/theirs"), "no `draft.json`: not a folder of ours"
