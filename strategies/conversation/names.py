"""A silo goes by the name that its key is registered under; no other key may use that name."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.proto.node_pb2 import NodeInfo

from fedsynth.silo_names import Holder, SiloNames, key_fingerprint


class NameBook:
    """Who may use which name, by what the SuperLink knows of the silos' keys; never by what a silo says.

    Args:
        nodes: the connected silos as the SuperLink has registered them, by node id.
        memory: the link's; None where the SuperLink was not started by ``fedsynth link start``.
    """

    def __init__(self, nodes: Mapping[int, NodeInfo], memory: SiloNames | None) -> None:
        self._nodes, self._memory = nodes, memory
        self._registered = {node.name for node in nodes.values() if node.name}
        if memory is not None:
            memory.read()

    def check(self, node_id: int, name: str) -> None:
        """Refuse a name that is not this silo's; one that is free becomes its own.

        Raises:
            ValueError: says whose it is, or what the silo's own is.
            UserError: the link cannot note it.
        """
        node = self._nodes.get(node_id, NodeInfo())
        if node.name and node.name != name:
            raise ValueError(
                f"calls itself '{name}', and its key is registered as '{node.name}': --silo-name at the silo must be"
                " the --name of 'fedsynth link register'"
            )
        if not node.name and name in self._registered:
            raise ValueError(f"calls itself '{name}', which another silo's key is registered as")
        if self._memory is not None:
            self._memory.bind(name, Holder(key_fingerprint(node.public_key), node_id))
