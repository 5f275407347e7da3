from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message
from hand_made import StubGrid, bare_reply, error_reply

from fedsynth.config import RunConfig, Scalar
from fedsynth.errors import RunError, UserError
from fedsynth.messages import PROTOCOL
from fedsynth.spec import ImageSpec
from strategies.conversation.agreement import agree, choose_silos, reconcile
from strategies.conversation.exchange import Exchange


def config_of(**keys: Scalar) -> RunConfig:
    given = {"dataset": "silos", "num-clients": 2, **{key.replace("_", "-"): value for key, value in keys.items()}}
    return RunConfig.from_run_config(given)


def specs(**classes: str) -> dict[str, ImageSpec]:
    return {name: ImageSpec(1, 8, tuple(said.split(","))) for name, said in classes.items()}


def test_format_is_the_union_of_classes_sorted_by_name_and_colour_if_one_silo_has_it() -> None:
    found = specs(south="c,b", north="b,a")
    assert reconcile(found, config_of()) == ImageSpec(1, 8, ("a", "b", "c"))
    found["east"] = ImageSpec(3, 8, ("b",))
    assert reconcile(dict(reversed(found.items())), config_of()) == ImageSpec(3, 8, ("a", "b", "c"))
    # The operator may say that look-alikes are two classes.
    given = config_of(class_names="cat, Cat")
    assert reconcile(specs(north="Cat", south="cat"), given).classes == ("cat", "Cat")
    # A Mac may give accents apart; silos send them composed.
    apart = config_of(class_names=unicodedata.normalize("NFD", "café,cat"))
    assert reconcile(specs(north="café", south="cat"), apart).classes == ("café", "cat")


@pytest.mark.parametrize(
    ("north", "south"),
    [("Cat", "cat"), ("cat ", "cat"), ("big cat", "big_cat"), ("big-cat", "Big  cat"), ("ﬁsh", "fish")],
)
def test_names_that_are_probably_the_same_are_refused_with_who_has_them(north: str, south: str) -> None:
    with pytest.raises(RunError, match=r"probably the same.*class-names") as caught:
        reconcile(specs(north=north, south=south, east="dog"), config_of())
    assert f"'{north}' (north)" in str(caught.value)
    assert f"'{south}' (south)" in str(caught.value)


def test_what_does_not_fit_together_names_silos_and_the_key_that_settles_it() -> None:
    sizes = {"north": ImageSpec(1, 8, ("a",)), "south": ImageSpec(1, 16, ("a",))}
    for found, config, said in (
        (sizes, config_of(), r"differ in size \(north 8, south 16 pixels\): set image-size"),
        (
            specs(north="cat,dog", south="dgo"),
            config_of(class_names="cat,dog"),
            r"not in class-names: 'dgo' \(south: did you mean 'dog'\?\)",
        ),
        (specs(north="cat", south="dog"), config_of(class_names="cat,dog,emu"), "class-names: no silo holds 'emu'"),
    ):
        with pytest.raises(RunError, match=said):
            reconcile(found, config)


@pytest.mark.parametrize("names", ["cat,cat", "cat,,dog", ",", "cat,"])
def test_class_names_must_be_distinct_names(names: str) -> None:
    with pytest.raises(UserError, match=r"class-names = .*must be distinct names"):
        config_of(class_names=names)


def test_first_silos_by_name_take_part_and_a_run_that_continues_takes_its_own() -> None:
    assert choose_silos(["south", "east", "north"], 2, None) == ["east", "north"]
    assert choose_silos(["south", "east", "north"], 2, ["south", "north"]) == ["north", "south"]
    with pytest.raises(RunError, match="south: not connected, but the run to resume has them"):
        choose_silos(["east", "north"], 2, ["south", "north"])


def description(message: Message, name: str, **said: Any) -> Message:
    answer = bare_reply(message, {"silo-name": name, "protocol": said.pop("protocol", PROTOCOL)})
    given = {"image-channels": 1, "image-size": 8, "classes": ["cat"]}
    answer.content["config"] = ConfigRecord({**given, **said})
    return answer


def agreed(respond: Callable[[Message], Message], nodes: list[int], **keys: Scalar) -> tuple[dict[int, str], ImageSpec]:
    return agree(Exchange(StubGrid(nodes, respond), 5.0), config_of(num_clients=len(nodes), **keys))[:2]


def test_silos_are_asked_before_they_know_any_format() -> None:
    names = {4: "south", 9: "north"}
    grid = StubGrid([9, 4], lambda message: description(message, names[message.metadata.dst_node_id]))
    chosen, spec, _ = agree(Exchange(grid, 5.0), config_of())
    assert chosen == {9: "north", 4: "south"}
    assert spec == ImageSpec(1, 8, ("cat",))
    assert [message.metadata.message_type for message in grid.requests] == ["query.describe"] * 2


def test_nonsense_another_protocol_and_equal_names_end_the_run_by_name() -> None:
    for said, why in (
        ({"classes": ["cat", "cat"]}, "2 classes: must be 0 to 10000 distinct names"),
        ({"image-size": 0}, "images of 0 pixels"),
        ({"protocol": 7}, r"the silo speaks protocol 7, this server speaks protocol 2 \(fedsynth \S+\): update"),
    ):
        with pytest.raises(RunError, match=f"0 usable answers, 1 needed: clinic: {why}"):
            agreed(lambda message, said=said: description(message, "clinic", **said), [1])  # type: ignore[misc]
    with pytest.raises(RunError, match=r"two silos go by one name \('clinic'\): give each its own silo-name"):
        agreed(lambda message: description(message, "clinic"), [1, 2])


def test_spare_silo_that_fails_does_not_stop_the_others() -> None:
    def respond(message: Message) -> Message:
        node = message.metadata.dst_node_id
        return error_reply(message, "south: UserError: no images") if node == 2 else description(message, f"s{node}")

    chosen, _, _ = agree(Exchange(StubGrid([1, 2, 3], respond), 5.0), config_of())
    assert chosen == {1: "s1", 3: "s3"}
    with pytest.raises(RunError, match="2 usable answers, 3 needed: south: UserError: no images"):
        agreed(respond, [1, 2, 3])
