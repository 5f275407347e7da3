"""Keys of a run as a whole, and of the messages it sends."""

from __future__ import annotations

from typing import Literal

from fedsynth.config.keys import Section, key
from fedsynth.config.types import (
    AUTO,
    AVERAGING,
    FEW_LABELS,
    NONE,
    REAL_SILOS,
    REPLICATED,
    SIMULATED,
    STREAMED,
    Auto,
    Count,
    LedgerContract,
    LedgerUrl,
    Licence,
    NonEmpty,
    NonNegative,
    PluginName,
    Positive,
    PositiveFloat,
    RayAddress,
    StrategyName,
)

SILOS_DIFFER = "the silos do not hold the same images, so a difference between rows is not the method's alone"
MODEL_COMMANDS = ("draw", "evaluate", "train-local")


class Run(Section):
    """What is run, where it writes and how it is repeated."""

    strategy: StrategyName | PluginName = key("dfd", "how the silos cooperate")
    seed: Count = key(
        0, "everything random follows from it, but for what private training keeps secret", commands=MODEL_COMMANDS
    )
    num_clients: Positive = key(
        10, "number of silos; partition=natural: as many as there are", incomparable=SILOS_DIFFER
    )
    output_dir: str = key("runs", "folder that receives one folder per run", path=True, affects="execution")
    run_name: NonEmpty = key(AUTO, "name of the run folder; auto: time-strategy-dataset-seed", affects="execution")
    state_dir: str = key(
        ".fedsynth",
        "where simulated silos keep their local models",
        path=True,
        affects="execution",
        commands=("evaluate",),
    )
    resume: str = key("", "run folder to continue; keys that cannot change must be that run's", affects="execution")
    device: Literal["auto", "cpu", "cuda"] = key(
        AUTO, "auto: CUDA when a process sees it", affects="execution", commands=MODEL_COMMANDS
    )
    ray_address: RayAddress = key(
        "",
        "Ray cluster whose machines the silos of fedsynth run and sweep work on; empty: Ray is started on this machine",
        affects="execution",
        acts_with={"dataset": SIMULATED},
    )
    license: Licence = key(
        "unknown",
        "licence of the synthetic images for the dataset card, by the hub's word, such as cc-by-4.0",
        affects="execution",
    )
    tracker: Literal["none", "tensorboard", "mlflow", "wandb", "trackio"] = key(
        NONE,
        "experiment tracker that is told settings, curves, pictures and results; needs fedsynth's extra of its name",
        affects="execution",
    )


class Cooperation(Section):
    """Cooperative inference, besides its settings."""

    dfd_preset: Literal["default", "paper"] = key(
        "default", "what the auto keys of dfd resolve to", acts_with={"strategy": ("dfd",)}
    )
    # Langevin moves take samples off their timestep, where nobody knows what honest networks answer.
    screening: bool = key(
        True,
        "leave out answers that no model of images could give; not with ula. With secure-aggregation each silo checks"
        " its own model, and stays out if it fails",
        acts_with={"strategy": ("dfd", *FEW_LABELS), "diffusion-strategy": ("dfd",)},
    )
    secure_aggregation: bool = key(
        False,
        "the server sees sums of the silos' noise predictions or updates, and no single one; three silos at least, no"
        " robust rule, and in dfd constant weights. Always so with dp-sum",
        acts_with={"strategy": ("dfd", *AVERAGING, "dp-sum")},
    )
    few_holders: Literal["leave-out", "pooled"] = key(
        "leave-out",
        "classes that too few silos hold to hide an answer in a sum (three, or more if a policy says so): left out by"
        " name, or pooled: holders whose policy answers sample draw the images from their own models, and the server"
        " sees which silo drew which",
        acts_with={"strategy": ("dfd",), "secure-aggregation": (True,)},
    )


class Replicas(Section):
    """Replicated aggregation: who computes a round, and how many of them must agree."""

    aggregators: Literal["server", "silos", "nodes"] = key(
        "server",
        "who combines the silos' updates: the server alone, every silo, or nodes of their own that hold no images; the"
        " aggregators' equal signed statements certify each round, and each of them sees the single updates of all"
        " silos",
        acts_with={"strategy": REPLICATED},
    )
    num_aggregators: Positive = key(
        4, "nodes that aggregate; all must be connected when a run begins", acts_with={"aggregators": ("nodes",)}
    )
    replica_quorum: Literal["byzantine", "majority"] = key(
        "byzantine",
        "equal statements that certify a round of m aggregators: floor((m + f) / 2) + 1 with f = floor((m - 1) / 3), so"
        " that no two results can be certified, or more than half, so that one of them is honest where most are",
        acts_with={"aggregators": ("silos", "nodes")},
    )
    key_file: str = key(
        "",
        "public keys of all silos, and of aggregators beside them: a file, equal at every party, as 'fedsynth link"
        " keys' writes it; simulated ones make their own",
        path=True,
        may_change=True,
        acts_with={"aggregators": ("silos", "nodes"), "dataset": (REAL_SILOS,)},
    )
    ledger_url: LedgerUrl = key(
        "",
        "Ethereum node on which the head of every round is written, beside the audit; needs fedsynth's extra ledger",
        affects="execution",
        acts_with={"aggregators": ("silos", "nodes")},
    )
    ledger_contract: LedgerContract = key(
        "",
        "contract on it, as 'fedsynth link ledger' deploys it",
        affects="execution",
        acts_with={"aggregators": ("silos", "nodes")},
    )
    ledger_key_file: str = key(
        "",
        "file of the private key of the account that writes there; empty: the node's own first account",
        path=True,
        affects="execution",
        acts_with={"aggregators": ("silos", "nodes")},
    )


class Exchange(Section):
    """Messages between server and silos."""

    wire_dtype: Literal["float32", "float16"] = key("float32", "precision of tensors on the wire")
    max_message_mb: PositiveFloat = key(
        64.0,
        "larger noise queries are cut into several messages; larger weights travel and are averaged in shards of this"
        " size, by way of the disk",
        affects="execution",
        acts_with={"strategy": ("dfd", *STREAMED)},
    )
    node_timeout: PositiveFloat = key(120.0, "seconds to wait for num-clients silos to connect", affects="execution")
    reply_timeout: PositiveFloat = key(
        3600.0,
        "seconds to wait for answers before, in the first of, and after the rounds; a later answer never counts",
        affects="execution",
    )
    round_timeout: PositiveFloat | Auto = key(
        AUTO,
        "seconds to wait for the answers of a round; auto: ten times the slowest answer so far, 60 at least, and"
        " reply-timeout in the first",
        affects="execution",
    )
    min_replies: Positive | Auto = key(
        AUTO,
        "usable answers a round needs; auto: one in dfd, half in averaging, else every silo's",
        may_change=True,
    )
    max_silo_images: Positive = key(1_000_000, "an answer that claims more images is left out")
    label_count_noise: NonNegative = key(
        0.0,
        "scale of the noise of simulated silos' label counts; 0: none, with dp-epsilon 1; at real silos their policy"
        " decides",
        acts_with={"dataset": SIMULATED},
    )
    fast_replies: bool = key(
        False, "wait 20 ms, not 1 s, for the rest of an answer; Flower 1.42.0 only", affects="execution"
    )
