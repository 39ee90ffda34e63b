"""What every test shares: coroutine tests run in an event loop of their own, and real servers are found by name."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from hypothesis import settings

# A machine that has other things to do is no failure: nobody measures how long an example takes.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

pytest_plugins = ["servers.pytest_plugin"]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `async def` test to its end in a fresh loop, with asyncio's debug checks for tasks never awaited."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True
