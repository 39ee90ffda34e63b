"""The balancer that a `Balance` declares."""

from __future__ import annotations

from typing import Any

from polywire.contract.policies import Balance
from polywire.policy.balance import Balancer, LeastBusy
from polywire.policy.balance_hash import ByKey
from polywire.policy.balance_rotation import RoundRobin, Weighted


def balancer_of(policy: Balance) -> Balancer[Any]:
    """A new one, for the calls to one target; `enabled=False` is the least busy of two as well."""
    if policy.enabled and policy.by == "round_robin":
        return RoundRobin()
    if policy.enabled and policy.by == "weighted":
        return Weighted(policy.weights)
    if policy.enabled and policy.by == "by_key":
        return ByKey(policy.load)
    return LeastBusy()
