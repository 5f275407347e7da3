"""What a silo's operator allows: the policy file, what a run would ask, and the lines of the policy that forbid it."""

from fedsynth.policy.plan import Plan, Refusal, besides, plan_of, refusals
from fedsynth.policy.policy import (
    AGGREGATOR_ANSWERS,
    POLICY_FILE,
    UNLIMITED,
    PolicyError,
    SiloPolicy,
    document,
    read_policy,
)

__all__ = [
    "AGGREGATOR_ANSWERS",
    "POLICY_FILE",
    "UNLIMITED",
    "Plan",
    "PolicyError",
    "Refusal",
    "SiloPolicy",
    "besides",
    "document",
    "plan_of",
    "read_policy",
    "refusals",
]
