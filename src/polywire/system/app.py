"""What one process runs: the services of an app, and the resources they live on."""

from __future__ import annotations

import collections.abc
import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, Union

from polywire.admission import check_guarded
from polywire.contract import Contract, contracts_of, service_of
from polywire.contract.event import Subscription, subscriptions_of
from polywire.errors import SetupError
from polywire.interceptor import Interceptor

S = TypeVar("S", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Key:
    """What is asked for and what a resource offers: a type, and a name where there are two of one type."""

    type: Any
    name: str = ""

    def __str__(self) -> str:
        shown = getattr(self.type, "__qualname__", None) if isinstance(self.type, type) else None
        text = shown or str(self.type).replace("typing.", "")
        return f"Annotated[{text}, {self.name!r}]" if self.name else text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Need:
    """One parameter of a constructor or of a resource."""

    parameter: str
    key: Key
    default: Any
    """`inspect.Parameter.empty` where it has none; None is one for a parameter annotated `X | None`."""

    @property
    def optional(self) -> bool:
        return self.default is not inspect.Parameter.empty


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resource:
    """Something that services need: opened before them, closed after them."""

    function: Callable[..., Any]
    key: Key
    needs: tuple[Need, ...]

    @property
    def label(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    @contextlib.asynccontextmanager
    async def open(self, arguments: dict[str, Any]) -> typing.AsyncIterator[Any]:
        """The resource for the length of the block, whichever way its function provides it."""
        made: Any = self.function(**arguments)
        if inspect.isasyncgen(made):
            made = _entering(contextlib.asynccontextmanager, made)
        elif inspect.isgenerator(made):
            made = _entering(contextlib.contextmanager, made)
        elif inspect.isawaitable(made):
            made = await made
        if _is_context(self.function):
            if hasattr(made, "__aenter__"):
                async with made as value:
                    yield value
            else:
                with made as value:
                    yield value
        else:
            yield made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServiceClass:
    """A class that implements contracts or subscribes to events, and what its constructor asks for."""

    cls: type[Any]
    contracts: tuple[type[Contract], ...]
    subscriptions: tuple[Subscription, ...]
    needs: tuple[Need, ...]

    @property
    def label(self) -> str:
        return f"{self.cls.__module__}:{self.cls.__qualname__}"


class App:
    """The services that run together in one process, and the resources they share.

    Nothing happens before the app is run, by `serve`, `testing.system` or `polywire up`. Then its resources are opened
    in the order of what they need, its services are built, and all is undone in reverse order at the end.

    *interceptors* are around every call that its services answer, *client_interceptors* around every call that they
    make; the first one is outermost.
    """

    def __init__(
        self,
        name: str,
        *,
        interceptors: Sequence[Interceptor] = (),
        client_interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self.name = name
        self.interceptors = tuple(interceptors)
        self.client_interceptors = tuple(client_interceptors)
        self._services: list[type[Any]] = []
        self._resources: list[Callable[..., Any]] = []

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    def service(self, cls: S) -> S:
        """Class decorator: run this class, for the calls and tasks of the contracts it implements and the events it
        subscribes to. Its constructor says by type what it needs: a contract becomes a client of whoever implements
        it, anything else comes from a resource."""
        if not isinstance(cls, type) or not (contracts_of(cls) or subscriptions_of(cls)):
            raise SetupError(
                f"@app.service was put on {getattr(cls, '__qualname__', cls)!r}, which implements no contract and "
                "subscribes to no event. Derive the class from a contract, `class StockService(Inventory): ...`, or "
                "put @subscribe(...) on a method."
            )
        self._services.append(cls)
        return cls

    def resource(self, function: F) -> F:
        """Decorator: a function that provides something to services and other resources, found by its return type.

        A generator (`-> AsyncIterator[Ledger]`, or Iterator) yields it once and cleans up after the `yield`; a plain
        or `async` function returns it; one that returns a context manager is entered. Two of one type are told apart by
        `Annotated[Ledger, "audit"]`, in the return type and where it is asked for. One that provides None is a step of
        the start-up, and what follows its `yield` one of the shutdown.
        """
        if not callable(function):
            raise SetupError(f"@app.resource was put on {function!r}, which is not a function.")
        self._resources.append(function)
        return function

    @property
    def contracts(self) -> dict[type[Contract], type[Any]]:
        """What the app implements, and by which class. Raises SetupError where two classes implement one contract."""
        found: dict[type[Contract], type[Any]] = {}
        for cls in self._services:
            for contract in contracts_of(cls):
                if contract in found:
                    raise SetupError(
                        f"app {self.name!r} implements {service_of(contract).full_name} twice: by "
                        f"{found[contract].__qualname__} and by {cls.__qualname__}. "
                        "Remove @app.service from one of them."
                    )
                found[contract] = cls
        return found

    def read(self) -> tuple[list[ServiceClass], list[Resource]]:
        """The services and resources with what each needs. Raises SetupError where an annotation is missing or says
        something that cannot be."""
        _ = self.contracts
        return [_service(cls) for cls in self._services], [_resource(function) for function in self._resources]


def _service(cls: type[Any]) -> ServiceClass:
    label = f"{cls.__module__}:{cls.__qualname__}"
    contracts = contracts_of(cls)
    check_guarded(cls, {name for contract in contracts for name in service_of(contract).rpcs})
    needs = () if cls.__init__ is object.__init__ else _needs(label, cls.__init__, skip_first=True)
    return ServiceClass(cls=cls, contracts=contracts, subscriptions=subscriptions_of(cls), needs=needs)


def _resource(function: Callable[..., Any]) -> Resource:
    label = f"resource {getattr(function, '__name__', repr(function))!r}"
    plain = inspect.unwrap(function)
    hints = _hints(label, plain)
    if "return" not in hints:
        raise SetupError(
            f"{label} ({_place(plain)}) does not say what it provides, and resources are found by their return type. "
            "Annotate it, for example `-> AsyncIterator[Ledger]`."
        )
    provided, name = _unannotated(hints["return"])
    origin = typing.get_origin(provided)
    if origin in _CONTAINERS and _is_context(function):
        provided, inner = _unannotated(typing.get_args(provided)[0])
        name = inner or name
    if provided is type(None):
        provided = None
    return Resource(function=function, key=Key(provided, name), needs=_needs(label, plain, skip_first=False))


def _entering(decorator: Any, generator: Any) -> Any:
    """A context manager over a generator that was made already."""
    return decorator(lambda: generator)()


_CONTAINERS = (
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    contextlib.AbstractAsyncContextManager,
    contextlib.AbstractContextManager,
)


def _is_context(function: Callable[..., Any]) -> bool:
    """Whether what *function* returns stands for the resource only while it is entered."""
    plain = inspect.unwrap(function)
    if inspect.isasyncgenfunction(plain) or inspect.isgeneratorfunction(plain):
        return True
    hint = typing.get_origin(_unannotated(_hints("", plain).get("return"))[0])
    return hint in (contextlib.AbstractAsyncContextManager, contextlib.AbstractContextManager)


def _needs(label: str, function: Callable[..., Any], *, skip_first: bool) -> tuple[Need, ...]:
    hints = _hints(label, function)
    parameters = list(inspect.signature(function).parameters.values())[1 if skip_first else 0 :]
    return tuple(
        _need(label, parameter, hints)
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )


def _need(label: str, parameter: inspect.Parameter, hints: dict[str, Any]) -> Need:
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise SetupError(f"{label} takes {parameter.name!r} by position only. Remove the `/` from its parameters.")
    if parameter.name not in hints:
        raise SetupError(
            f"{label} does not say of what type its parameter {parameter.name!r} is, and what it needs is found "
            f"by type. Annotate it, for example `{parameter.name}: Ledger`."
        )
    wanted, name = _unannotated(hints[parameter.name])
    default = parameter.default
    members = typing.get_args(wanted) if typing.get_origin(wanted) in (Union, types.UnionType) else ()
    if len(members) == 2 and type(None) in members:
        wanted, inner = _unannotated(next(member for member in members if member is not type(None)))
        name = name or inner
        default = None if default is inspect.Parameter.empty else default
    return Need(parameter=parameter.name, key=Key(wanted, name), default=default)


def _unannotated(hint: Any) -> tuple[Any, str]:
    if typing.get_origin(hint) is not typing.Annotated:
        return hint, ""
    inner, *marks = typing.get_args(hint)
    return inner, next((mark for mark in marks if isinstance(mark, str)), "")


def _hints(label: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise SetupError(
            f"{label} ({_place(function)}) names a type that its module does not have: {error}. "
            "Import it outside of `if TYPE_CHECKING`, at the top of the module."
        ) from error


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)
