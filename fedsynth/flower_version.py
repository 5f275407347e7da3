"""The version of Flower that this project is written for, and everything it uses that Flower does not document.

Documented are the names of ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp`` and ``flwr.serverapp.strategy``.
"""

from __future__ import annotations

from importlib.metadata import version

FLOWER_VERSION = "1.42.0"

INTERNALS: dict[str, str] = {
    "flwr.cli.build.build_fab_from_files": "files",
    "flwr.cli.install.install_from_fab": "fab_file install_dir skip_prompt",
    "flwr.clientapp.utils.get_load_client_app_fn": "default_app_ref app_path multi_app",
    "flwr.common.constant.ErrorCode": "",
    "flwr.common.constant.SType": "",
    "flwr.common.constant.SubStatus": "",
    "flwr.proto.node_pb2.NodeInfo": "",
    "flwr.proto.runtime_pb2.AcquireTaskRequest": "",
    "flwr.proto.runtime_pb2.SendTaskHeartbeatRequest": "",
    "flwr.supercore.app_utils.start_parent_process_monitor": "parent_pid",
    "flwr.supercore.constant.TASK_TOKEN_HEADER": "",
    "flwr.supercore.constant.TaskType": "",
    "flwr.supercore.fab.Fab": "hash_str content verifications",
    "flwr.supercore.heartbeat.HeartbeatSender": "heartbeat_fn",
    "flwr.supercore.inflatable.inflatable_utils.pull_and_inflate_object_from_tree": "initial_backoff",
    "flwr.supercore.inflatable.inflatable_utils.pull_objects": "initial_backoff",
    "flwr.supercore.interceptors.RuntimeVersionHttpInterceptor": "component_name",
    "flwr.supercore.interceptors.SuperExecAuthHttpInterceptor": "master_secret protected_methods",
    "flwr.supercore.protobuf.client.ProtobufCall": "",
    "flwr.supercore.protobuf.client.ProtobufRequestContext": "request",
    "flwr.supercore.retry.RetryInvoker": "wait_gen_factory recoverable_exceptions max_tries max_time",
    "flwr.supercore.retry.exponential": "max_delay",
    "flwr.supercore.run.Run": "run_id fab_id fab_version",
    "flwr.supercore.run.RunNotRunningException": "",
    "flwr.supercore.runtime.RuntimeHttpClient.from_server_address": (
        "server_address insecure root_certificates interceptors retry_invoker"
    ),
    "flwr.supercore.task_identity.TaskIdentity": "",
    "flwr.supernode.cli.flower_supernode.flower_supernode": "",
    "flwr.supernode.runtime.run_clientapp.pull_task_input": "client",
    "flwr.supernode.runtime.run_clientapp.push_message": "client message context",
    "flwr.supernode.runtime.run_clientapp.push_task_output": "client context sub_status details",
    "flwr.supernode.start_client_internal._pull_and_store_message": "pull_object confirm_message_received",
    "flwr.supernode.start_client_internal.time": "",
}
"""Undocumented names of Flower that the three packages use, each with the parameters that they rely on."""


def version_problem(feature: str, instead: str) -> str:
    """Return why a feature that uses Flower's internals cannot work with the installed Flower; empty if it can.

    Args:
        feature: its name, as the subject of the sentence.
        instead: what to do without it.
    """
    installed = version("flwr")
    if installed == FLOWER_VERSION:
        return ""
    return (
        f"{feature} uses internals of Flower {FLOWER_VERSION} and this is Flower {installed}:"
        f" {instead}, or install flwr=={FLOWER_VERSION}"
    )
