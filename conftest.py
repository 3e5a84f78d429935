"""How hypothesis behaves in the tests of every distribution."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Deadlines measure the machine; a shared one would make good code flaky.
settings.register_profile("dami", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("dami")
