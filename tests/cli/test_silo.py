from __future__ import annotations

import itertools
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from public_models import write_public_model
from real_silos import write_digits
from tiny_autoencoders import write_taesd
from tiny_bases import write_base

from fedsynth.cli import main
from fedsynth.cli.deployment.app import program_digest
from fedsynth.locks import locked
from fedsynth.policy import SiloPolicy, read_policy
from fedsynth.privacy.sums.key_files import read_known, read_public, read_secret
from fedsynth.sides import sides_folder


@pytest.fixture
def words(project: Path) -> list[str]:
    """What a silo gives that has everything: images, key and certificate."""
    write_digits(project / "images", (0, 1), 0, per_class=2)
    assert main(["link", "init"]) == 0
    assert main(["silo", "init"]) == 0
    given = {"--superlink": "link.example.org:9092", "--root-certificates": "link/ca.crt", "--data-path": "images"}
    return ["silo", "start", "--dry-run", *(word for pair in given.items() for word in pair)]


def command_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], dict[str, object]]:
    """Flower's command, and the node config as Flower reads it."""
    capsys.readouterr()
    assert main(words) == 0
    command = shlex.split(capsys.readouterr().out)
    return command, parse_config_args([command[command.index("--node-config") + 1]])


def test_init_makes_a_pair_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["silo", "init", "--folder", "clinic"]) == 0
    assert f"send the operator {project / 'clinic' / 'silo.pub'}" in capsys.readouterr().out
    key = (project / "clinic" / "silo.key").read_bytes()
    assert main(["silo", "init", "--folder", "clinic"]) == 2
    assert "the SuperLink knows the silo by it" in capsys.readouterr().err
    assert (project / "clinic" / "silo.key").read_bytes() == key


def test_start_gives_flower_what_the_client_app_reads(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, config = command_of(capsys, *words)
    assert command[:4] == [f"FLWR_HOME={project / 'silo' / 'flwr'}", "flower-supernode", "--superlink", words[4]]
    pairs = dict(itertools.pairwise(command))
    assert pairs["--root-certificates"] == str(project / "link" / "ca.crt")
    assert pairs["--auth-supernode-private-key"] == str(project / "silo" / "silo.key")
    assert 0 < int(pairs["--port"]) < 65536
    state = str(project / "silo" / "state")
    policy = str(project / "silo" / "silo-policy.toml")
    assert config == {
        "data-path": str(project / "images"),
        "silo-name": "images",
        "state-path": state,
        "policy-path": policy,
    }
    (project / "model" / "unet").mkdir(parents=True)
    (project / "model" / "unet" / "config.json").write_text("{}")
    (project / "own.toml").write_text("noise-queries-per-run = 10")
    write_taesd(project / "taesd")
    given = ["--silo-name", "Ärzte am Fluß", "--model-path", "model", "--state-path", "kept", "--policy", "own.toml"]
    write_public_model(project / "public", ("0", "1"))
    write_base(project / "base")
    given += ["--autoencoder-path", "taesd", "--init-from", "public", "--base-model", "base"]
    _, config = command_of(capsys, *words, *given)
    assert config == {
        "data-path": str(project / "images"),
        "silo-name": "Ärzte am Fluß",
        "state-path": str(project / "kept"),
        "policy-path": str(project / "own.toml"),
        "model-path": str(project / "model"),
        "autoencoder-path": str(project / "taesd"),
        "init-from": str(project / "public"),
        "base-model": str(project / "base"),
    }


def test_a_silo_names_the_column_of_its_patients(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--group-column", "patient"]) == 2
    assert "no metadata.csv or metadata.jsonl or metadata.parquet in" in capsys.readouterr().err
    files = sorted(path.relative_to(project / "images") for path in (project / "images").rglob("*.png"))
    rows = [f"{file.as_posix()},p{number // 2}" for number, file in enumerate(files)]
    (project / "images" / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    assert command_of(capsys, *words, "--group-column", "patient")[1]["group-column"] == "patient"
    assert main([*words, "--group-column", "patent"]) == 2
    assert "has no column 'patent': did you mean 'patient'?" in capsys.readouterr().err


def test_a_warm_silo_has_a_process_beside_the_supernode(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, config = command_of(capsys, *words)
    command, warm = command_of(capsys, *words, "--warm", "--allow-fab", "0" * 64, "--allow-fab", "f" * 64)
    assert warm == config
    cut = command.index("--")
    expected = ["-m", "clients.warm.warm_silo", "--allow-fab", "0" * 64, "--allow-fab", "f" * 64]
    python_path = os.pathsep.join(filter(None, [str(sides_folder()), os.environ.get("PYTHONPATH")]))
    assert command[1] == f"PYTHONPATH={python_path}", "where its packages are, wherever it is started"
    assert command[3:cut] == expected
    assert command[cut + 1 :] == plain[2:-2], "SuperNode's own options but its port"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--allow-fab " + "0" * 64, "--allow-fab is for --warm: add it"),
        ("--or-stock", "--or-stock is for --warm: add it"),
        ("--warm --allow-fab 1234", "allow-fab = '1234': must be the 64 digits that 'fedsynth silo program' prints"),
        ("--warm --or-stock --allow-fab " + "0" * 64, "--or-stock: Flower's own way does not know --allow-fab"),
        ("--superlink link.example.org", "superlink = 'link.example.org': must be HOST:PORT"),
        ("--root-certificates silo/silo.pub", "is no PEM certificate"),
        ("--root-certificates link/server.crt", "'link/server.crt' is a server's (server.crt?)"),
        ("--folder elsewhere", "'fedsynth silo init' makes one"),
        ("--data-path imgaes", "data-path = 'imgaes': there is no folder: did you mean 'images'?"),
        ("--data-path images/0", "no class folders in"),
        ("--model-path absent", "holds no diffusers model: 'fedsynth train-local' makes one"),
        ("--autoencoder-path images", "holds no autoencoder (found '0', '1'): give one of diffusers"),
        ("--init-from images", "holds no network (unet/config.json or config.json)"),
        ("--state-path link/ca.crt", "state-path: cannot write"),
        ('--silo-name a"b', "quotes, backslashes and line breaks are not possible"),
        ("--silo-name " + "x" * 65, "must be 1 to 64 printable characters, without blanks at its ends; give another"),
        ("--silo-name a\u202eb", r"silo-name = 'a\u202eb': must be 1 to 64 printable"),
        ("--silo-nmae a", "unknown option '--silo-nmae'"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(
    given: str, said: str, words: list[str], refused: Callable[..., str]
) -> None:
    assert said in refused(*words, *given.split())


def test_damaged_images_are_told_at_the_start(
    words: list[str], project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(words) == 0
    assert "cannot be read" not in caplog.text
    torn = next((project / "images" / "0").glob("*.png"))
    # Its header is whole: only its pixels tell.
    torn.write_bytes(torn.read_bytes()[:-30])
    assert main(words) == 0
    assert f"1 images cannot be read (0/{torn.name}; 0/{torn.name}: " in caplog.text
    assert "a run refuses them, unless skip-bad-images=true" in caplog.text


def test_classes_that_look_alike_are_told_at_the_start(
    words: list[str], project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(words) == 0
    assert "a run refuses them as one" not in caplog.text
    for name in ("big cat", "Big_Cat"):
        shutil.copytree(project / "images" / "0", project / "images" / name)
    assert main(words) == 0
    assert "classes Big_Cat, big cat: a run refuses them as one" in caplog.text


def test_silo_says_at_its_end_whether_it_was_stopped(
    words: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedsynth")
    for status, said in (
        (1, "the silo has ended (status 1)"),
        (0, ""),
        (128 + 15, "stopped by SIGTERM"),
        (128 + 9, "the silo has ended (status 137)"),
    ):
        caplog.clear()
        monkeypatch.setattr("fedsynth.cli.silo.run_in_foreground", lambda *_, status=status: status)
        assert main([word for word in words if word != "--dry-run"]) == status
        last = caplog.messages[-1] if caplog.messages else ""
        assert last.startswith(said) if said else "stopped" not in last and "has ended" not in last
        assert "docs/" not in last


def test_init_writes_the_default_policy_and_keeps_one_that_is_there(project: Path) -> None:
    assert main(["silo", "init"]) == 0
    path = project / "silo" / "silo-policy.toml"
    assert read_policy(path) == SiloPolicy()
    path.write_text("noise-queries-per-run = 10")
    (project / "silo" / "silo.key").unlink()
    assert main(["silo", "init"]) == 0
    assert path.read_text() == "noise-queries-per-run = 10"


def test_program_prints_the_line_that_pins_this_version(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["link", "init"]) == main(["silo", "init"]) == 0
    assert "any program of the server runs here: pin it with programs" in capsys.readouterr().out
    assert main(["silo", "program"]) == 0
    said, policy = capsys.readouterr().out, project / "silo" / "silo-policy.toml"
    line = f'programs = ["{program_digest()}"]'
    assert said.endswith(f"  {line}\n")
    assert main(["run", "--dry-run", "--superlink", "link"]) == 0
    assert capsys.readouterr().out.startswith(said[: said.index("\ncompare")]), "both say the same two lines"
    policy.write_text(line)
    assert main(["silo", "program"]) == 0
    assert f"policy {policy} pins it" in capsys.readouterr().out
    policy.write_text(f'programs = ["{"a" * 64}"]')
    assert main(["silo", "program"]) == 1
    assert "pins 1 other: this program is refused" in capsys.readouterr().out


def test_programs_of_the_policy_are_all_that_a_warm_silo_runs(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    line = f'programs = ["{"a" * 64}"]'
    (project / "silo" / "silo-policy.toml").write_text(line)
    assert f"{line} in '{project / 'silo' / 'silo-policy.toml'}' needs --warm: add it" in refused(*words)
    command, _ = command_of(capsys, *words, "--warm")
    assert command[command.index("--allow-fab") + 1] == "a" * 64


def test_a_silo_without_a_policy_says_that_the_default_one_acts(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    (project / "silo" / "silo-policy.toml").unlink()
    _, config = command_of(capsys, *words)
    assert "policy-path" not in config
    said = refused(*words, "--policy", "none.toml")
    assert "No such file or directory; 'fedsynth silo init' writes one" in said


def test_policy_is_compared_with_a_planned_run(
    project: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    write_digits(project / "images", (0, 1), 0, per_class=2)
    own = project / "own.toml"
    own.write_text('answers = ["describe", "prepare", "epsilon"]\nnoise-queries-per-run = 14\n')
    assert main(["silo", "policy", "--check", "own.toml"]) == 0
    assert "valid; lines that differ from the default: 2\n  answers = [" in capsys.readouterr().out
    dfd, fedavg = project / "dfd.toml", project / "fedavg.toml"
    dfd.write_text("dfd-rounds = 10\nnum-samples = 100\n")
    fedavg.write_text('strategy = "fedavg"\n')

    def check(setting: Path) -> tuple[int, str]:
        status = main(["silo", "policy", "--check", "own.toml", "--setting", str(setting), "--data-path", "images"])
        return status, capsys.readouterr().out

    status, said = check(dfd)
    assert status == 1
    assert "REFUSED  line 'least-training-images = 50': the silo has fewer images to train on" in said
    with own.open("a") as file:
        file.write("least-training-images = 2\n")
    status, said = check(dfd)
    assert (status, "this policy allows the run" in said) == (0, True)
    assert "noise queries       14\n  samples per query   100\n" in said
    assert "training images     3\n" in said
    assert said.endswith("of the lines '…-in-all', earlier runs have used a part)\n")
    assert "image size          8\n" in said
    status, said = check(fedavg)
    assert (status, "this policy forbids the run" in said) == (1, True)
    assert """REFUSED  line 'answers = ["describe", "prepare", "epsilon"]': the run asks 'train'""" in said
    write_taesd(project / "taesd")
    dfd.write_text('dfd-rounds = 10\nautoencoder = "/the/server/has/it"\nimage-size = 32\n')
    words = ["silo", "policy", "--check", "own.toml", "--setting", str(dfd), "--data-path", "images"]
    assert "is of a run in latents: add --autoencoder-path" in refused(*words)
    main([*words, "--autoencoder-path", "taesd"])
    assert "image size          32\n" in capsys.readouterr().out
    dfd.write_text("dfd-rounds = 11\n")
    status, said = check(dfd)
    assert status == 1
    assert "REFUSED  line 'noise-queries-per-run = 14': the run asks up to 15 noise queries" in said
    dfd.write_text("dfd-rounds = 10\nholdout-fraction = 0.3\n")
    assert check(dfd)[0] == 0
    assert main([*words, "--group-column", "patient"]) == 1
    assert "REFUSED  line 'largest-holdout-fraction = 0.5': the run asks up to 0.6 holdout fraction" in (
        capsys.readouterr().out
    )
    dfd.write_text("dfd-round = 11\n")
    assert "unknown config key 'dfd-round'" in refused("silo", "policy", "--check", "own.toml", "--setting", str(dfd))


def test_a_state_folder_is_one_silo_s_at_a_time(
    words: list[str], project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedsynth.cli.silo.check_clock", lambda *_: None)
    started: list[Path] = []
    monkeypatch.setattr("fedsynth.cli.silo.run_in_foreground", lambda *given: started.append(given[2]) or 0)
    words.remove("--dry-run")
    state = project / "silo" / "state"
    with locked(state / "silo.lock", "it"):
        assert main(words) == 2
        assert f"error: state folder '{state}' is in use by process {os.getpid()} on " in capsys.readouterr().err
        assert main([*words, "--state-path", "other"]) == 0
    assert main(words) == 0
    assert len(started) == 2


def test_keys_for_secure_sums_go_from_the_silos_to_the_operator_and_back(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    own = project / "silo" / "sums.key"
    assert own.stat().st_mode & 0o077 == 0
    assert main(["silo", "init", "--folder", "other"]) == 0
    assert main(["link", "keys", "images=silo/sums.pub", "other=other/sums.pub"]) == 0
    known = project / "link" / "silo-keys.json"
    fingerprint = read_known(known)["other"].fingerprint
    assert f"other: SHA-256 {fingerprint}" in capsys.readouterr().out
    # Without the operator's file a silo has no part in secure sums.
    assert "sum-keys-path" not in command_of(capsys, *words)[1]
    shutil.copy(known, project / "silo")
    with caplog.at_level("INFO", "fedsynth"):
        _, config = command_of(capsys, *words)
    assert config["sum-keys-path"] == str(own)
    assert config["known-keys-path"] == str(project / "silo" / "silo-keys.json")
    assert f"other: keys for secure sums, SHA-256 {fingerprint}" in caplog.text
    # Under the name of another silo, or with another key, nothing starts.
    assert main([*words, "--silo-name", "other"]) == 2
    assert "has other keys of 'other' than this silo" in capsys.readouterr().err
    own.chmod(0o644)
    assert main(words) == 2
    assert "can be read by others: chmod 600" in capsys.readouterr().err


def test_an_earlier_silo_gets_its_keys_for_secure_sums_and_keeps_the_rest(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["silo", "init"]) == 0
    folder = project / "silo"
    key = (folder / "silo.key").read_bytes()
    (folder / "sums.key").unlink()
    assert main(["silo", "init"]) == 0
    assert f"send the operator {folder / 'sums.pub'}" in capsys.readouterr().out
    assert (folder / "silo.key").read_bytes() == key
    assert read_secret(folder / "sums.key").public == read_public(folder / "sums.pub")


def test_what_init_is_given_need_not_be_said_again(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    place = project / "silo"
    whole, config = command_of(capsys, *words, "--silo-name", "north", "--state-path", "kept", "--warm")
    assert "data-path is not known: give --data-path here, or to 'fedsynth silo init', which keeps it in" in refused(
        "silo", "start", "--superlink", "link.example.org:9092"
    )
    assert "superlink is not known" in refused("silo", "start")
    for action in ("start", "policy"):
        said = refused("silo", action, "--folder", "sloi")
        assert f"there is no folder '{project / 'sloi'}': did you mean 'silo'?; 'fedsynth silo init' makes one" in said
    shutil.copy(project / "link" / "ca.crt", place / "ca.crt")
    key = (place / "silo.key").read_bytes()
    told = ["--superlink", "link.example.org:9092", "--data-path", "images", "--state-path", "kept", "--warm"]
    assert main(["silo", "init", *told]) == 0
    assert main(["silo", "init", "--silo-name", "north"]) == 0, "what it holds already stays"
    assert (place / "silo.key").read_bytes() == key
    command, again = command_of(capsys, "silo", "start", "--dry-run")
    assert again == config
    certificates = [str(project / "link" / "ca.crt"), str(place / "ca.crt")]
    assert [word for word in whole if word not in certificates] == [
        word for word in command if word not in certificates
    ]
    # Options go before the file, which people may write: its paths begin at the silo's folder.
    (place / "silo.toml").write_text('superlink = "a:1"\ndata-path = "../images"\nsilo-name = "west"\n')
    command, again = command_of(capsys, "silo", "start", "--dry-run", "--silo-name", "east")
    assert ("a:1" in command, again["silo-name"], "warm_silo" in " ".join(command)) == (True, "east", False)
    assert main(["silo", "audit"]) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("data-paht = 'images'", "unknown 'data-paht': did you mean 'data-path'?"),
        ("warm = 'yes'", "warm = 'yes': must be true or false"),
        ("silo-name = 3", "silo-name = 3: must be text"),
        ("silo-name north", "not TOML"),
    ],
)
def test_settings_that_cannot_be_are_named(line: str, said: str, words: list[str], refused: Callable[..., str]) -> None:
    Path("silo/silo.toml").write_text(line)
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--superlink link.example.org", "superlink = 'link.example.org': must be HOST:PORT"),
        ("--data-path absent", "there is no folder"),
        ("--silo-name " + "x" * 65, "must be 1 to 64 printable characters"),
    ],
)
def test_init_refuses_before_it_makes_a_key(given: str, said: str, project: Path, refused: Callable[..., str]) -> None:
    assert said in refused("silo", "init", *given.split())
