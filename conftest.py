"""How hypothesis and pytest behave in the tests of every distribution."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# Deadlines measure the machine; a shared one would make good code flaky.
settings.register_profile("dami", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("dami")

# A shell's background job ignores Ctrl-C and hands that on to the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a case of raw bytes by its argument: bytes may hold a time, and parallel workers must agree on names."""
    return argname if isinstance(val, bytes) else None
