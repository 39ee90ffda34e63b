"""Bugs planted into the real code, one at a time, each to be found by a test."""

from __future__ import annotations
import __future__

import asyncio
import gc
import importlib
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import pytest

PATIENCE = 10.0
"""Seconds after which a test that waits for what will never come counts as failed."""


@dataclass(frozen=True)
class Bug:
    """In the function *where*, *right* is replaced by *wrong*; the test *found_by* has to fail then."""

    where: str
    right: str
    wrong: str
    found_by: str
    arguments: tuple[Any, ...] = ()


def find(bug: Bug, patience: float = PATIENCE) -> None:
    """Its test passes without *bug*, and fails with it, which by *patience* seconds without an end it does too."""
    test = the_test(bug.found_by)
    # As long as without the bug: what needs longer would be "found" on a slow machine, bug or no bug.
    run(test, bug.arguments, patience)
    with planted(bug), pytest.raises((Exception, pytest.fail.Exception)):
        run(test, bug.arguments, patience)
    with warnings.catch_warnings():
        # What a failed test leaves open is tidied up here, where nobody minds, and not in the middle of another test.
        warnings.simplefilter("ignore")
        gc.collect()


def found(path: str) -> Any:
    """What *path*, `module:name.name`, names."""
    module, _, names = path.partition(":")
    value: Any = importlib.import_module(module)
    for name in names.split("."):
        value = inspect.getattr_static(value, name) if isinstance(value, type) else getattr(value, name)
    return value


def function_at(path: str) -> FunctionType:
    function = found(path)
    assert isinstance(function, FunctionType)
    return function


def rewritten(function: FunctionType, right: str, wrong: str) -> CodeType:
    """The code of *function* with *wrong* in the only place of *right*, its names bound as they were."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(right) == 1, f"{right!r} is there {source.count(right)} times: keep this table in step"
    source = source.replace(right, wrong)
    # Free names, `__class__` of a bare super() among them, have to be those of an enclosing function again.
    free = function.__code__.co_freevars
    outer = f"def outer({', '.join(free)}):\n" + textwrap.indent(source, "    ")
    flags = __future__.annotations.compiler_flag
    code = compile(outer, "<planted bug>", "exec", flags=flags, dont_inherit=True)
    inner = next(part for part in code.co_consts if isinstance(part, CodeType))
    planted = next(part for part in inner.co_consts if isinstance(part, CodeType) and part.co_name == function.__name__)
    # Calling super() in a method makes the compiler add `__class__` by itself; elsewhere the order may differ.
    assert planted.co_freevars == free, (planted.co_freevars, free)
    return planted


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    function = function_at(bug.where)
    right = function.__code__
    function.__code__ = rewritten(function, bug.right, bug.wrong)
    try:
        yield
    finally:
        function.__code__ = right


def run(test: Callable[..., Any], arguments: tuple[Any, ...], patience: float = PATIENCE) -> None:
    if not inspect.iscoroutinefunction(test):
        test(*arguments)
        return

    async def main() -> None:
        async with asyncio.timeout(patience):
            await test(*arguments)

    asyncio.run(main())


def the_test(path: str) -> Callable[..., Any]:
    """A test function, or a method of a suite, ready to be called."""
    module, _, names = path.partition(":")
    owner, _, name = names.rpartition(".")
    if not owner:
        test: Callable[..., Any] = found(path)
        return test
    suite: Any = found(f"{module}:{owner}")()
    method: Callable[..., Any] = getattr(suite, name)
    return method
