from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from huggingface_hub import DatasetCard, ModelCard

import fedsynth
from fedsynth.api import pushing
from fedsynth.api.pushing import planned_uploads
from fedsynth.cli import main
from fedsynth.errors import RunError, UserError

TELLING = {"membership-auc": 0.96, "membership-tpr-at-1-percent-fpr": 0.4, "members": 500, "non-members": 500}


@pytest.fixture
def own(run: fedsynth.Run, tmp_path: Path) -> fedsynth.Run:
    """A copy that a test may change."""
    shutil.copytree(run.path, tmp_path / "run")
    return fedsynth.Run(tmp_path / "run")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> mock.MagicMock:
    api = mock.MagicMock()
    api.upload_folder.return_value.commit_url = "https://hub/commit"
    monkeypatch.setattr(pushing, "HfApi", mock.Mock(return_value=api))
    return api


def attacked(run: fedsynth.Run, prefix: str) -> fedsynth.Run:
    found = {f"{prefix}{name}": value for name, value in TELLING.items()}
    run.folder.write_results({**run.results, **found})
    return fedsynth.Run(run.path)


def test_a_dry_run_lists_the_set_alone_and_sends_nothing(
    run: fedsynth.Run, hub: mock.MagicMock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run.path), "--repo-id", "us/digits", "--dry-run"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[:-2]}
    root = run.path / "synthetic"
    assert listed == {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}
    assert head.startswith("dataset us/digits: 33 files, ")
    assert lines[-2:] == ["licence unknown; name one with --license", "dry run: nothing was sent"]
    assert not hub.mock_calls


def test_the_set_goes_with_a_whole_card(own: fedsynth.Run, hub: mock.MagicMock) -> None:
    own.push_to_hub("us/digits", private=True, license="cc-by-4.0")
    hub.create_repo.assert_called_once_with("us/digits", repo_type="dataset", private=True, exist_ok=True)
    hub.upload_folder.assert_called_once_with(
        repo_id="us/digits",
        repo_type="dataset",
        folder_path=str(own.path / "synthetic"),
        commit_message="Synthetic images",
    )
    hub.upload_file.assert_not_called()
    card = DatasetCard.load(own.path / "synthetic" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert '"dfd-rounds": 4' in card.text
    assert str(own.path.parents[1]) not in card.content
    assert fedsynth.Run(own.path).dataset.provenance["license"] == "cc-by-4.0"


def test_the_model_goes_only_when_asked_for(run: fedsynth.Run, hub: mock.MagicMock) -> None:
    run.push_to_hub("us/digits", models=True)
    kinds = [call.kwargs["repo_type"] for call in hub.upload_folder.call_args_list]
    folders = [Path(call.kwargs["folder_path"]) for call in hub.upload_folder.call_args_list]
    assert dict(zip(kinds, folders, strict=True)) == {
        "dataset": run.path / "synthetic",
        "model": run.path / "models" / "generator",
    }
    (sent,) = hub.upload_file.call_args_list
    assert (sent.kwargs["path_in_repo"], sent.kwargs["repo_type"]) == ("README.md", "model")
    card = ModelCard(sent.kwargs["path_or_fileobj"].decode())
    assert (card.data.license, card.data.library_name) == ("unknown", "diffusers")
    assert "differential privacy: none" in card.text
    listed = planned_uploads(run, "us/digits", models=True)[1].sizes
    assert {"README.md", "integrity.json", "model_index.json", "unet/config.json"} < listed.keys()


@pytest.mark.parametrize(("prefix", "what"), [("released-", "images"), ("generator-epsilon-", "models")])
def test_what_the_verdict_warns_of_takes_a_word_of_its_own(
    own: fedsynth.Run, hub: mock.MagicMock, prefix: str, what: str
) -> None:
    warned = attacked(own, prefix)
    with pytest.raises(UserError, match=rf"do not publish the {what}: who was trained on shows with AUC \.96"):
        warned.push_to_hub("us/digits", models=True)
    assert not hub.mock_calls
    if what == "models":
        assert len(planned_uploads(warned, "us/digits")) == 1  # the images alone
    warned.push_to_hub("us/digits", models=True, despite_verdict=True)
    assert hub.upload_folder.call_count == 2


def test_what_is_no_part_of_the_set_or_says_paths_is_not_sent(own: fedsynth.Run, hub: mock.MagicMock) -> None:
    root = own.path / "synthetic"
    (root / "0" / "notes.txt").write_text("of a patient")
    with pytest.raises(UserError, match=r"notes\.txt' is no part of what a run leaves: take it out"):
        own.push_to_hub("us/digits")
    (root / "0" / "notes.txt").unlink()
    link = next((root / "0").glob("*.png"))
    content = link.read_bytes()
    link.unlink()
    (own.path / "elsewhere.png").write_bytes(content)
    link.symlink_to(own.path / "elsewhere.png")
    with pytest.raises(UserError, match=r"\.png' is no part of what a run leaves"):
        own.push_to_hub("us/digits")
    link.unlink()
    link.write_bytes(content)
    record = json.loads((root / "provenance.json").read_text())
    record["provenance"]["settings"]["data-root"] = "/home/somebody/images"
    (root / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"says a path of this machine, data-root = '/home/somebody/images'"):
        fedsynth.Run(own.path).push_to_hub("us/digits")
    assert not hub.mock_calls


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repo-id", "a/b/c"], "repo-id = 'a/b/c': "),
        (["--repo-id", "us/digits", "--license", "My own"], "license = 'My own': must be a word such as cc-by-4.0"),
    ],
)
def test_names_that_are_none_are_refused(
    run: fedsynth.Run, hub: mock.MagicMock, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["push", str(run.path), *words]) == 2
    assert said in capsys.readouterr().err
    assert not hub.mock_calls


def test_a_hub_that_refuses_is_an_error_with_what_to_do(run: fedsynth.Run, hub: Any) -> None:
    hub.create_repo.side_effect = ConnectionError("no network")
    with pytest.raises(RunError, match=r"the hub did not take 'us/digits': no network; 'hf auth login' signs in"):
        run.push_to_hub("us/digits")
