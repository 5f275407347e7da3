from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import fedsynth.data.folder_entries
import fedsynth.data.folder_listing
from fedsynth.data.folder_listing import list_images
from fedsynth.data.image_folder import image_folder_spec, read_image_folder
from fedsynth.errors import UserError
from fedsynth.messages.fields import MAX_CLASSES

NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of two images in ``images``, with folders above that hold others."""
    save(tmp_path / "other" / "outside.png", 9)
    for number in range(2):
        save(tmp_path / "images" / "cat" / f"{number}.png", number)
        save(tmp_path / "images" / "dog" / f"{number}.png", 100 + number)
    return tmp_path / "images"


def found(root: Path) -> dict[str, list[str]]:
    listing = list_images(root)
    return {name: [str(path.relative_to(root / name)) for path in files] for name, files in listing.files.items()}


PLAIN = {"cat": ["0.png", "1.png"], "dog": ["0.png", "1.png"]}


class TestLinks:
    @pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "../dog", "/"])
    def test_a_link_back_up_or_aside_brings_in_nothing(self, tree: Path, target: str) -> None:
        (tree / "cat" / "all").symlink_to(target)
        assert found(tree) == PLAIN
        assert "linked more than once: 1, read once (cat/all is " in str(list_images(tree))

    @pytest.mark.parametrize("target", [".", "..", "../.."])
    def test_a_class_folder_that_leads_back_up_is_refused(self, tree: Path, target: str) -> None:
        (tree / "all").symlink_to(target)
        with pytest.raises(UserError, match=r"class folder '.*all' leads back up to"):
            list_images(tree)

    def test_two_names_of_one_class_folder_are_refused(self, tree: Path) -> None:
        (tree / "kitten").symlink_to("cat")
        with pytest.raises(UserError, match=r"class folders 'cat' and 'kitten' of .* are one folder"):
            list_images(tree)

    def test_files_that_are_linked_twice_count_once_where_they_really_lie(self, tree: Path) -> None:
        # 'cat' is listed before 'dog': the link must not take the file away from where it lies.
        (tree / "cat" / "a-link.png").symlink_to("../dog/0.png")
        os.link(tree / "dog" / "1.png", tree / "dog" / "hard.png")
        assert found(tree) == PLAIN
        said = str(list_images(tree))
        assert "linked more than once: 2" in said
        assert "cat/a-link.png is dog/0.png" in said
        assert "dog/hard.png is dog/1.png" in said

    def test_a_class_whose_images_another_one_holds_is_refused_with_them(self, tree: Path) -> None:
        (tree / "emu").mkdir()
        os.link(tree / "dog" / "1.png", tree / "emu" / "both.png")
        with pytest.raises(
            UserError, match=r"no images in class folder 'emu' .*another class holds: emu/both\.png is dog"
        ):
            list_images(tree)

    def test_a_dataset_of_links_is_read_in_the_order_of_its_names(self, tree: Path, tmp_path: Path) -> None:
        for name in PLAIN:
            (tmp_path / "linked" / name).mkdir(parents=True)
            for file in reversed(PLAIN[name]):
                (tmp_path / "linked" / name / file).symlink_to(tree / name / file)
        (tmp_path / "folders").mkdir()
        for name in PLAIN:
            (tmp_path / "folders" / name).symlink_to(tree / name)
        assert found(tmp_path / "linked") == found(tmp_path / "folders") == PLAIN
        assert read_image_folder(tmp_path / "linked").fingerprint() == read_image_folder(tree).fingerprint()

    def test_a_linked_folder_elsewhere_is_read_with_what_it_links_to(self, tree: Path, tmp_path: Path) -> None:
        save(tmp_path / "disk2" / "more" / "2.png")
        (tmp_path / "disk2" / "back").symlink_to(tmp_path / "disk2")
        (tree / "cat" / "disk2").symlink_to(tmp_path / "disk2")
        assert found(tree)["cat"] == ["0.png", "1.png", "disk2/more/2.png"]

    def test_links_that_lead_nowhere_are_named(self, tree: Path) -> None:
        (tree / "cat" / "gone.png").symlink_to("nowhere.png")
        (tree / "cat" / "itself.png").symlink_to("itself.png")
        with pytest.raises(UserError, match=r"2 of 6 images cannot be read: .*gone\.png.*itself\.png"):
            read_image_folder(tree)
        (tree / "emu").symlink_to("unmounted")
        with pytest.raises(UserError, match=r"links in .* lead nowhere: emu"):
            list_images(tree)


class TestWhatIsNotRead:
    def test_folders_and_files_of_systems_are_skipped_with_one_line(self, tree: Path) -> None:
        for folder in ("cat/@eaDir/0.png", "dog/.ipynb_checkpoints", "dog/.git", "cat/.snapshot/daily", "__MACOSX/cat"):
            save(tree / folder / "thumb.jpg", 7)
        for folder in ("lost+found", "#recycle", "$RECYCLE.BIN", "System Volume Information"):
            save(tree / folder / "old.png", 8)
        for file in ("cat/Thumbs.db", "cat/._0.png", "dog/._1.png", "dog/.hidden.png", "dog/desktop.ini"):
            (tree / file).write_bytes(b"x")
        assert found(tree) == PLAIN
        said = str(list_images(tree))
        assert said.count("\n") == 0
        assert "2 ._*" in said
        assert sum(list_images(tree).skipped.values()) == 14
        assert len(read_image_folder(tree)) == 4

    def test_system_folders_are_not_even_opened(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tree / "lost+found").mkdir()  # root's own on every ext4 disk
        (tree / "cat" / ".snapshot").mkdir()  # years of them on a NAS
        with unreadable(monkeypatch, "lost+found", ".snapshot"):
            assert found(tree) == PLAIN

    def test_other_suffixes_are_counted_and_named(self, tree: Path) -> None:
        for file in ("cat/a.TXT", "cat/deep/b.txt", "dog/c.psd", "dog/LICENSE"):
            (tree / file).parent.mkdir(exist_ok=True)
            (tree / file).write_text("x", encoding="utf-8")
        assert "not read: 2 .txt, 1 .psd, 1 without suffix" in str(list_images(tree))
        (tree / "emu").mkdir()
        (tree / "emu" / "raw.cr2").write_bytes(b"x")
        with pytest.raises(UserError, match=r"no images in class folder 'emu' .*1 \.cr2"):
            list_images(tree)

    def test_pipes_sockets_and_devices_are_never_opened(self, tree: Path) -> None:
        os.mkfifo(tree / "cat" / "pipe.png")
        (tree / "dog" / "link.png").symlink_to("../cat/pipe.png")
        (tree / "dog" / "device.png").symlink_to("/dev/zero")
        with socket.socket(socket.AF_UNIX) as end:
            home = os.open(tree / "dog", os.O_RDONLY)  # its path may be too long for a socket's address
            end.bind(f"/proc/self/fd/{home}/socket.png")
            os.close(home)
            assert found(tree) == PLAIN
            said = str(list_images(tree))
        for name in ("cat/pipe.png (FIFO)", "dog/socket.png (socket)", "link.png (FIFO)", "device.png (device)"):
            assert name in said
        os.mkfifo(os.fsencode(tree) + b"/cat/a\n\xe9")
        str(list_images(tree)).encode("utf-8")
        assert r"cat/a\n" in str(list_images(tree))


@contextmanager
def unreadable(monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[None]:
    """Refuse to list folders of these names, also to root."""
    scandir = os.scandir

    def refusing(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(fedsynth.data.folder_entries.os, "scandir", refusing)
        yield


def test_a_folder_that_may_not_be_listed_is_refused_by_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tree / "cat" / "patient7" / "2.png")
    for folder in ("patient7", "cat", "images"):
        with unreadable(monkeypatch, folder), pytest.raises(UserError, match=rf"{folder}' may not be read \(Perm"):
            list_images(tree)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_same_as_a_user_without_the_permission() -> None:
    code = (
        "import os, sys; from pathlib import Path; from fedsynth.data.folder_listing import list_images\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: list_images(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        save(Path(folder, "cat", "0.png"))
        save(Path(folder, "cat", "patient7", "0.png")).parent.chmod(0o700)
        command = [sys.executable, "-c", code, folder]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert "cat/patient7' may not be read (Permission denied)" in done.stdout, done.stderr


class TestNames:
    @pytest.mark.parametrize("name", [b"caf\xe9/0.png", b"cat/caf\xe9.png", b"cat/caf\xe9/0.png"])
    def test_names_that_are_not_utf_8_are_refused_with_their_bytes(self, tree: Path, name: bytes) -> None:
        try:
            save(Path(os.fsdecode(os.fsencode(tree) + b"/" + name)))
        except OSError:
            pytest.skip("this file system keeps UTF-8 only")
        with pytest.raises(UserError, match=r"the name '.*caf\\xe9.*' is not UTF-8: rename it") as error:
            list_images(tree)
        str(error.value).encode("utf-8")  # can be logged

    def test_accents_that_are_stored_apart_give_the_same_class(self, tmp_path: Path) -> None:
        save(tmp_path / "mac" / NFD / "0.png")
        save(tmp_path / "linux" / NFC / "0.png")
        for silo in ("mac", "linux"):
            assert image_folder_spec(tmp_path / silo).classes == (NFC,)
            # A run's classes may be written either way too.
            for name in (NFC, NFD):
                data = read_image_folder(tmp_path / silo, classes=("bar", name))
                assert data.classes == ("bar", name)
                assert data.labels.tolist() == [1]

    def test_both_ways_in_one_folder_are_refused(self, tmp_path: Path) -> None:
        save(tmp_path / NFD / "0.png")
        if (tmp_path / NFC).exists():
            pytest.skip("this file system takes them for one name")
        save(tmp_path / NFC / "0.png")
        with pytest.raises(UserError, match=f"2 folders of the name '{NFC}', whose accents are stored differently"):
            list_images(tmp_path)

    def test_names_that_a_message_would_not_carry_are_refused(self, tree: Path) -> None:
        save(tree / "a\nb" / "0.png")
        with pytest.raises(UserError, match=r"class folder '.*a\\nb': rename it"):
            list_images(tree)

    def test_more_classes_than_a_run_takes_are_refused_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert fedsynth.data.folder_listing.MAX_CLASSES == MAX_CLASSES, "what the messages carry"
        monkeypatch.setattr(fedsynth.data.folder_listing, "MAX_CLASSES", 300)
        for number in range(301):
            (tmp_path / f"{number}").mkdir()
        with pytest.raises(UserError, match="holds 301 class folders: at most 300"):
            list_images(tmp_path)
        (tmp_path / "0").rmdir()
        with pytest.raises(UserError, match=r"no images in class folders '1', '10', '100', .* and 295 more") as error:
            list_images(tmp_path)
        assert len(str(error.value)) < 500


class TestManyFiles:
    def test_the_order_is_that_of_the_names_whatever_the_file_system(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for path in ("cat/b/0.png", "cat/a/z.png", "cat/a/b/0.png", "cat/10.png", "cat/B.png"):
            save(tree / path)
        walked = [
            str((Path(parent) / name).relative_to(tree / "cat"))
            for parent, folders, names in os.walk(tree / "cat")
            for name in (folders.sort(), *sorted(names))[1:]
        ]
        scandir = os.scandir

        @contextmanager
        def shuffled(path: Path) -> Iterator[list[os.DirEntry[str]]]:
            with scandir(path) as entries:
                inside = list(entries)
            random.Random(1).shuffle(inside)
            yield inside

        monkeypatch.setattr(fedsynth.data.folder_entries.os, "scandir", shuffled)
        assert found(tree)["cat"] == walked == ["0.png", "1.png", "10.png", "B.png", "a/z.png", "a/b/0.png", "b/0.png"]

    def test_progress_is_said(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(fedsynth.data.folder_listing, "_SECONDS", 0.0)
        with caplog.at_level("INFO", "fedsynth"):
            list_images(tree)
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
            "1 images so far",
            "2 images so far",
            "3 images so far",
            "4 images so far",
        ]

    def test_a_class_of_one_image_is_said(self, tree: Path) -> None:
        save(tree / "emu" / "0.png")
        assert "a single image, which is never held out: emu" in str(list_images(tree))


def test_files_that_no_run_would_take_are_said_before_any_run(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "cat" / "torn.png").write_bytes(b"torn")
    assert image_folder_spec(tree).classes == ("cat", "dog")
    assert (
        "1 files cannot be read as images (cat/torn.png; the first: not an image): a run refuses them, unless skip"
        in caplog.text
    )


def test_a_file_that_vanishes_meanwhile_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = fedsynth.data.folder_listing.entries

    def then_removed(folder: Path) -> list[os.DirEntry[str]]:
        inside = listed(folder)
        (tree / "dog" / "1.png").unlink(missing_ok=folder.name != "dog")
        return inside

    monkeypatch.setattr(
        fedsynth.data.folder_listing, "entries", lambda path: then_removed(path) if path.name == "dog" else listed(path)
    )
    with pytest.raises(UserError, match=r"dog/1\.png': No such file.*, while .* was listed: try again"):
        list_images(tree)


@pytest.mark.parametrize("case", ["loop", "nas", "macosx"])
def test_folders_of_the_field_give_four_images_a_class(field: Path, case: str) -> None:
    assert read_image_folder(field / case).label_counts().tolist() == [4, 4]


@pytest.mark.parametrize(
    ("case", "said"),
    [("folds", "holds the folds Training, Testing"), ("too-high", "one folder, 'dataset'"), ("latin", r"caf\\xe9")],
)
def test_folders_of_the_field_that_are_refused(field: Path, case: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_image_folder(field / case)


def test_random_folders_hold_every_image_once_where_it_lies(tmp_path: Path) -> None:
    """Folders, files, links and hard links at random, against what the classes really hold."""
    rng = random.Random(0)
    spare = save(tmp_path / "image.png")
    image = spare.read_bytes()
    linked = 0
    for trial in range(60):
        root = tmp_path / f"{trial}"
        folders = [root / "a", root / "b"]
        files = []
        for folder in folders:
            (folder / "kept").mkdir(parents=True)
            files.append(folder / "kept" / "0.png")
            files[-1].write_bytes(image)
        for number in range(rng.randrange(25)):
            place = rng.choice(folders) / f"{number}{rng.choice(['', '.png'])}"
            kind = rng.randrange(4)
            if kind == 0:
                place.mkdir()
                folders.append(place)
            elif kind == 1:
                place.with_suffix(".png").write_bytes(image)
                files.append(place.with_suffix(".png"))
            elif kind == 2:
                os.link(
                    rng.choice([file for file in files if file.parent.name != "kept"] or [spare]),
                    place.with_suffix(".png"),
                )
            else:
                target = rng.choice([*folders, *files, root, tmp_path])
                place.symlink_to(target if rng.randrange(2) else os.path.relpath(target, place.parent))
        listing = list_images(root)
        found = [path.stat().st_ino for path in listing.paths]
        assert len(found) == len(set(found)), "once"
        found = [number for number in found if number != spare.stat().st_ino]
        assert set(found) == {path.stat().st_ino for path in files}, "all of them"
        assert not any(path.is_symlink() for path in listing.paths), "where they really lie"
        assert all(path.relative_to(root).parts[0] == name for name, paths in listing.files.items() for path in paths)
        linked += len(listing.doubles)
    assert linked > 60
