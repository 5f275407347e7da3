from __future__ import annotations

from strategies.run.phases import Phases


def test_every_second_belongs_to_one_phase() -> None:
    now = 100.0
    phases = Phases(clock=lambda: now)
    for phase, ends in (("training", 103.0), ("rounds", 110.0), ("training", 111.0), ("report", 115.0)):
        now = ends
        phases.enter(phase)
    now = 121.0
    assert phases.seconds() == {"start": 3.0, "training": 11.0, "rounds": 1.0}
    assert phases.so_far() == {"start": 3.0, "training": 11.0, "rounds": 1.0, "report": 6.0}
    now = 122.0
    assert sum(phases.so_far().values()) == now - 100
