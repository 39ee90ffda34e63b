"""How property tests run on a machine that has other things to do: no example is ever too slow."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

UNHURRIED = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
