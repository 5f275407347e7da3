"""A run that is stopped, a link that is killed, a silo without ``--warm``: the dataset is that of a whole run."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from deployed import Deployment, deployed, same_run_in_process
from tiny_runs import images_of

from fedsynth.output import RunFolder

SILOS = {"north": (0, 1), "south": (1, 2)}


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("restarts"), SILOS, stock=["south"]) as link:
        yield link


def test_silo_for_which_flower_starts_a_process_a_message_gives_the_same_images(link: Deployment) -> None:
    run = link.run("stock", num_clients=2, dfd_rounds=2)
    assert images_of(run) == images_of(same_run_in_process(run, link, list(SILOS)))
    assert len(images_of(run)) == 60


def test_run_of_a_stopped_command_is_stopped_at_the_link_which_is_killed_later(link: Deployment) -> None:
    """The run goes on after both, to the dataset of an uninterrupted run."""
    link.stop("south")
    link.start_silo_of("south")
    link.start_run("broken", num_clients=2, dfd_rounds=20)
    link.wait("broken", lambda: link.rounds_done("broken") >= 1)
    assert link.signalled("broken", signal.SIGTERM) == 128 + signal.SIGTERM
    broken = RunFolder(link.folder / "runs" / "broken")
    reached = link.rounds_done("broken")
    resume = f"fedsynth run --resume {broken.path} --superlink link"
    last_line = link.log("broken").strip().splitlines()[-1]
    assert last_line == f"stopped by SIGTERM: the run stands after round {reached}; go on with '{resume}'"
    status = broken.read_status()
    noted = "fedsynth run --resume broken --superlink link"
    assert (status["state"], status["signal"], status["resume"]) == ("stopped", "SIGTERM", noted)
    link.start("resumed", "run", "--resume", "runs/broken", "--superlink", "link")
    link.wait("resumed", lambda: link.rounds_done("broken") > reached)
    link.kill("link")
    assert link.ended("resumed") != 0
    assert reached < link.rounds_done("broken") < 20
    assert not broken.results.exists()
    link.start_link()
    link.start("again", "run", "--resume", "runs/broken", "--superlink", "link")
    link.finish_run("again", folder="broken")
    assert [row["round"] for row in broken.read_metrics()] == list(range(1, 21))
    assert images_of(broken) == images_of(same_run_in_process(broken, link, list(SILOS)))
