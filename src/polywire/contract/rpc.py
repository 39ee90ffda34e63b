"""What a service promises: contracts, their rpcs and tasks, and the shape of each call."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import re
import typing
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from polywire.contract.failures import NOTHING, Raises, check_raises, listed
from polywire.contract.message import Message
from polywire.contract.priority import Priority
from polywire.contract.rest import Route
from polywire.contract.task import Task, TaskOptions, check_agreement, read_task
from polywire.errors import CallError, ContractError

if TYPE_CHECKING:
    from polywire.contract.policies import Policy
    from polywire.contract.retry import Retry

Function = TypeVar("Function", bound=Callable[..., Any])
_PACKAGE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*\Z", re.IGNORECASE)
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+\Z")


class Kind(enum.Enum):
    """How many messages travel each way."""

    UNARY = "unary"
    CLIENT_STREAM = "client_stream"
    SERVER_STREAM = "server_stream"
    BIDIRECTIONAL = "bidirectional"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rpc:
    """One method of a contract, as wires and clients see it. Compared and hashed by identity."""

    attribute: str
    """The name of the Python method, `check_stock`."""
    name: str
    """The name on the wire, `CheckStock`."""
    service: str
    """The full name of the service, `shop.v1.Inventory`."""
    kind: Kind
    request: type[Message] | None
    """None where the method takes no argument (google.protobuf.Empty on the wire)."""
    response: type[Message] | None
    """None where it returns None."""
    idempotent: bool
    timeout: float | None
    """Seconds for the whole call, all attempts together; None takes the client's default."""
    attempt_timeout: float | None
    routes: tuple[Route, ...]
    doc: str
    prefix: str = ""
    """Of its contract: before the path of each of *routes*."""
    raises: Raises = field(default_factory=lambda: NOTHING)
    """The errors of the contract that callers get as the same class, by their names on the wire."""
    policies: tuple[Policy | Retry, ...] = ()
    """What its callers keep to."""
    of_contract: tuple[Policy | Retry, ...] = ()
    """What callers of any method of its contract keep to."""
    priority: Priority = Priority.NORMAL
    """Whose calls are turned away first when a service has too much to do."""

    @property
    def full_name(self) -> str:
        return f"{self.service}/{self.name}"

    @property
    def path(self) -> str:
        """Of gRPC and Connect, `/shop.v1.Inventory/CheckStock`."""
        return f"/{self.service}/{self.name}"

    @property
    def streams_requests(self) -> bool:
        return self.kind in (Kind.CLIENT_STREAM, Kind.BIDIRECTIONAL)

    @property
    def streams_responses(self) -> bool:
        return self.kind in (Kind.SERVER_STREAM, Kind.BIDIRECTIONAL)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Service:
    """A contract read: its names, its rpcs and its tasks. `service_of(SomeContract)` returns it."""

    contract: type[Contract]
    name: str
    """`Inventory`"""
    package: str
    """`shop.v1`, or empty."""
    prefix: str
    """Before the path of every REST route, `/api/v1`, or empty."""
    rpcs: dict[str, Rpc]
    """By the name of the Python method, in the order of declaration."""
    doc: str
    tasks: dict[str, Task] = field(default_factory=dict)
    """As *rpcs*."""

    @property
    def full_name(self) -> str:
        return f"{self.package}.{self.name}" if self.package else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    routes: tuple[Route, ...]
    idempotent: bool
    timeout: float | None
    attempt_timeout: float | None
    name: str | None
    raises: tuple[type[CallError], ...] = ()
    policies: tuple[Policy | Retry, ...] = ()
    priority: Priority = Priority.NORMAL


@overload
def rpc(function: Function, /) -> Function: ...
@overload
def rpc(
    *routes: Route,
    idempotent: bool = False,
    timeout: float | None = None,
    attempt_timeout: float | None = None,
    name: str | None = None,
    raises: Sequence[type[CallError]] = (),
    policies: Sequence[Policy | Retry] = (),
    priority: Priority = Priority.NORMAL,
) -> Callable[[Function], Function]: ...
def rpc(
    *arguments: Any,
    idempotent: bool = False,
    timeout: float | None = None,
    attempt_timeout: float | None = None,
    name: str | None = None,
    raises: Sequence[type[CallError]] = (),
    policies: Sequence[Policy | Retry] = (),
    priority: Priority = Priority.NORMAL,
) -> Any:
    """Declare a method of a contract as callable over any wire.

    What streams follows from the signature: an argument or a result annotated `AsyncIterator[M]` is a stream of M. A
    method with a streamed result is declared `def`, not `async def`.

    *idempotent*: doing it twice is the same as doing it once, so that it may be retried although an earlier attempt
    perhaps arrived. *timeout*: seconds for the whole call; *attempt_timeout* bounds one attempt inside it. *name* is
    the name on the wire where it is not the Python name in CamelCase. *routes*: its REST forms, made by `get`, ...
    *raises*: the errors of the contract that callers get as the same class; any other has its canonical one.
    *policies*: what its callers keep to, `(Hedge(after=0.05), Retry(attempts=1))`, by value over what is said further
    away; see docs/reference/policies.md.
    *priority*: calls of a lower one are turned away first when the service has too much to do.
    """
    if not isinstance(priority, Priority):
        raise ContractError(f"@rpc(priority={priority!r}): give Priority.BACKGROUND, NORMAL or CRITICAL.")
    raised = check_raises("@rpc", raises)
    kept = _checked("@rpc(policies=...)", policies)
    for label, seconds in (("timeout", timeout), ("attempt_timeout", attempt_timeout)):
        if seconds is not None and not seconds > 0:
            raise ContractError(f"@rpc({label}={seconds!r}): a timeout is a positive number of seconds.")

    def mark(function: Function, routes: tuple[Route, ...] = ()) -> Function:
        options = _Options(
            routes=routes,
            idempotent=idempotent,
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            name=name,
            raises=raised,
            policies=kept,
            priority=priority,
        )
        function.__rpc__ = options  # type: ignore[attr-defined]  # a plain function takes attributes
        return function

    if len(arguments) == 1 and not isinstance(arguments[0], Route) and callable(arguments[0]):
        return mark(arguments[0])
    for argument in arguments:
        if not isinstance(argument, Route):
            raise ContractError(
                f"@rpc({argument!r}) is no REST route. Write it with get(...), post(...), put(...), patch(...) or "
                "delete(...), for example @rpc(get('/inventory/{product_id}'))."
            )
    return lambda function: mark(function, tuple(arguments))


class Contract:
    """What a service promises. Subclass it with `package=` to declare one, subclass that one to implement it.

    *name* is the name on the wire where it is not the class's own; *prefix* goes before its REST routes, so that two
    versions can stand side by side; *raises* are errors that all of its methods may raise; *policies* are what callers
    of all of its methods keep to. Methods not declared with `@rpc` or `@task` are helpers and do not travel.
    """

    __declared__: ClassVar[tuple[str, str, str] | None] = None
    __raises__: ClassVar[tuple[type[CallError], ...]] = ()
    __policies__: ClassVar[tuple[Policy | Retry, ...]] = ()

    def __init_subclass__(
        cls,
        *,
        package: str | None = None,
        name: str | None = None,
        prefix: str = "",
        raises: Sequence[type[CallError]] = (),
        policies: Sequence[Policy | Retry] = (),
        **others: Any,
    ) -> None:
        super().__init_subclass__(**others)
        declares = Contract in cls.__bases__ or package is not None or name is not None
        if not declares:
            if prefix:
                raise ContractError(
                    f"{cls.__qualname__} implements a contract and gives prefix={prefix!r}, but a prefix belongs to "
                    "the contract. Move it there."
                )
            if raises:
                raise ContractError(
                    f"{cls.__qualname__} implements a contract and gives raises=, but what callers may get belongs to "
                    "the contract. Move it there."
                )
            if policies:
                raise ContractError(
                    f"{cls.__qualname__} implements a contract and gives policies=, but what callers keep to "
                    "belongs to the contract. Move it there."
                )
            return
        package = package or ""
        if package and not _PACKAGE.match(package):
            raise ContractError(f"{cls.__qualname__}: package={package!r} is no package name. Write it like 'shop.v1'.")
        if prefix and not _PREFIX.match(prefix):
            raise ContractError(
                f"{cls.__qualname__}: prefix={prefix!r} is no path prefix. "
                "Write it like '/api/v1', without a slash at the end."
            )
        cls.__declared__ = (package, name or cls.__name__, prefix)
        cls.__raises__ = (*cls.__raises__, *check_raises(cls.__qualname__, raises))
        if policies:
            cls.__policies__ = _checked(f"{cls.__qualname__}: policies=...", policies)
        _check_tasks(cls)


_services: dict[type[Contract], Service] = {}


def contracts_of(cls: type) -> tuple[type[Contract], ...]:
    """The contracts that *cls* declares or implements, nearest first."""
    return tuple(
        base
        for base in cls.__mro__
        if isinstance(base, type)
        and issubclass(base, Contract)
        and "__declared__" in vars(base)
        and base is not Contract
    )


def service_of(contract: type[Contract]) -> Service:
    """Read a contract's rpcs from its methods. Raises ContractError where a signature could not travel."""
    known = _services.get(contract)
    if known is not None:
        return known
    if "__declared__" not in vars(contract) or contract is Contract:
        raise ContractError(
            f"{contract.__qualname__} is no contract of its own. A contract is a direct subclass of Contract, "
            f"`class {contract.__name__}(Contract, package='...')`."
        )
    declared = contract.__declared__
    assert declared is not None  # noqa: S101 - set together with the class attribute tested above
    package, name, prefix = declared
    full_name = f"{package}.{name}" if package else name
    rpcs: dict[str, Rpc] = {}
    tasks: dict[str, Task] = {}
    spelled: dict[str, str] = {}
    for base in reversed(contract.__mro__):
        for attribute, function in vars(base).items():
            read = _read_marked(contract, full_name, attribute, function)
            if read is None:
                continue
            if read.name in spelled and spelled[read.name] != attribute:
                raise ContractError(
                    f"{full_name} has two methods called {read.name!r} on the wire: {spelled[read.name]} and "
                    f"{attribute}. Give one of them a name of its own, name=..."
                )
            spelled[read.name] = attribute
            rpcs.pop(attribute, None)
            tasks.pop(attribute, None)
            if isinstance(read, Rpc):
                rpcs[attribute] = read
            else:
                tasks[attribute] = read
    check_agreement(tasks.values())
    service = Service(
        contract=contract,
        name=name,
        package=package,
        prefix=prefix,
        rpcs=rpcs,
        tasks=tasks,
        doc=inspect.cleandoc(contract.__doc__ or "") if "__doc__" in vars(contract) else "",
    )
    _services[contract] = service
    return service


def wire_name(attribute: str) -> str:
    """`check_stock` as `CheckStock`."""
    return "".join(part[:1].upper() + part[1:] for part in attribute.split("_"))


def _read_marked(
    contract: type[Contract], service: str, attribute: str, function: Callable[..., Any]
) -> Rpc | Task | None:
    rpc_options, task_options = getattr(function, "__rpc__", None), getattr(function, "__task__", None)
    if rpc_options is not None and task_options is not None:
        raise ContractError(f"{contract.__qualname__}.{attribute} is both @rpc and @task. Choose one of them.")
    if rpc_options is not None:
        return _read(contract, service, attribute, function, rpc_options)
    if task_options is not None:
        return _read_task(contract, service, attribute, function, task_options)
    return None


def _read_task(
    contract: type[Contract], service: str, attribute: str, function: Callable[..., Any], options: TaskOptions
) -> Task:
    where = f"{contract.__qualname__}.{attribute}"
    request, streams_requests = _request_of(where, function)
    response, streams_responses = _response_of(where, function)
    if streams_requests or streams_responses:
        raise ContractError(
            f"{where} has a stream, which a task cannot have: it takes and returns one message or none."
        )
    if not inspect.iscoroutinefunction(function):
        raise ContractError(f"{where} has to be declared `async def`: sending a task is awaited.")
    return read_task(
        options,
        where=where,
        attribute=attribute,
        name=options.name or wire_name(attribute),
        service=service,
        request=request,
        response=response,
        doc=inspect.cleandoc(function.__doc__ or ""),
        raises=listed((contract.__declared__ or ("",))[0], service, dict.fromkeys(contract.__raises__)),
    )


def _check_tasks(contract: type[Contract]) -> None:
    """Read a new contract's tasks with a key now, so that a wrong one is told where it stands; later where their
    signatures name what comes later."""
    package, name, _ = contract.__declared__ or ("", "", "")
    for attribute, function in vars(contract).items():
        options = getattr(function, "__task__", None)
        if options is not None and options.key is not None:
            try:
                typing.get_type_hints(function)
            except NameError:
                continue
            _read_marked(contract, f"{package}.{name}" if package else name, attribute, function)


def _read(
    contract: type[Contract], service: str, attribute: str, function: Callable[..., Any], options: _Options
) -> Rpc:
    where = f"{contract.__qualname__}.{attribute}"
    request, streams_requests = _request_of(where, function)
    response, streams_responses = _response_of(where, function)
    if streams_responses and inspect.iscoroutinefunction(function):
        raise ContractError(
            f"{where} returns a stream but is declared `async def`, which has another type. "
            "Declare it `def ... -> AsyncIterator[...]`."
        )
    if not streams_responses and not inspect.iscoroutinefunction(function):
        raise ContractError(f"{where} has to be declared `async def`, as it returns one answer.")
    if streams_requests and any(route.verb == "GET" for route in options.routes):
        raise ContractError(f"{where} takes a stream, which a GET route cannot carry. Use post(...).")
    kind = {
        (False, False): Kind.UNARY,
        (True, False): Kind.CLIENT_STREAM,
        (False, True): Kind.SERVER_STREAM,
        (True, True): Kind.BIDIRECTIONAL,
    }[streams_requests, streams_responses]
    package, _, prefix = contract.__declared__ or ("", "", "")
    name = options.name or wire_name(attribute)
    return Rpc(
        attribute=attribute,
        name=name,
        service=service,
        kind=kind,
        request=request,
        response=response,
        idempotent=options.idempotent,
        timeout=options.timeout,
        attempt_timeout=options.attempt_timeout,
        routes=options.routes,
        doc=inspect.cleandoc(function.__doc__ or ""),
        prefix=prefix,
        priority=options.priority,
        raises=listed(package, f"{service}/{name}", dict.fromkeys((*contract.__raises__, *options.raises))),
        policies=_fitting(where, options.policies, contract.__policies__, kind, request, response)
        if options.policies or contract.__policies__
        else (),
        of_contract=contract.__policies__,
    )


def _checked(where: str, given: Sequence[Policy | Retry]) -> tuple[Policy | Retry, ...]:
    if not given:
        return ()
    # Imported here, as most contracts declare none and are not to wait for their classes to be made.
    from polywire.contract.policies import checked_policies

    return checked_policies(where, given)


def _fitting(
    where: str,
    policies: tuple[Policy | Retry, ...],
    of_contract: tuple[Policy | Retry, ...],
    kind: Kind,
    request: type[Message] | None,
    response: type[Message] | None,
) -> tuple[Policy | Retry, ...]:
    """The *policies* of one method, which have to fit what it takes and gives; those *of_contract* where they can."""
    from polywire.contract.keys import check_key, has_key
    from polywire.contract.policies import NOTHING as NO_VALUE
    from polywire.contract.policies import Balance, Fallback, answers

    single = None if kind in (Kind.CLIENT_STREAM, Kind.BIDIRECTIONAL) else request
    for one in of_contract:
        if isinstance(one, Balance) and one.key is not None:
            has_key(where, single, one.key)
    for one in policies:
        if isinstance(one, Fallback) and kind in (Kind.SERVER_STREAM, Kind.BIDIRECTIONAL):
            raise ContractError(f"{where} has a Fallback, but answers by a stream, which nothing can stand in for.")
        if isinstance(one, Fallback) and one.value is not NO_VALUE and not answers(response, one.value):
            kind_answered = "None" if response is None else response.__qualname__
            raise ContractError(f"{where} falls back on {one.value!r}, but answers {kind_answered}.")
        if isinstance(one, Balance) and one.key is not None:
            check_key(where, single, one.key)
    return policies


def _request_of(where: str, function: Callable[..., Any]) -> tuple[type[Message] | None, bool]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if not parameters:
        return None, False
    if len(parameters) > 1:
        names = ", ".join(parameter.name for parameter in parameters)
        raise ContractError(
            f"{where} takes {len(parameters)} arguments ({names}); it may take one message or none. "
            "Put them into a Message."
        )
    return _message(where, f"its argument {parameters[0].name!r}", _hints(where, function).get(parameters[0].name))


def _response_of(where: str, function: Callable[..., Any]) -> tuple[type[Message] | None, bool]:
    hints = _hints(where, function)
    if "return" not in hints:
        raise ContractError(f"{where} does not say what it returns. Annotate it with a Message, or with None.")
    if hints["return"] is type(None):
        return None, False
    return _message(where, "what it returns", hints["return"])


def _hints(where: str, function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ContractError(
            f"{where} names a type that its module does not have: {error}. "
            "Import it outside of `if TYPE_CHECKING`, at the top of the module."
        ) from error


def _message(where: str, what: str, hint: Any) -> tuple[type[Message], bool]:
    streamed = False
    if typing.get_origin(hint) in (collections.abc.AsyncIterator, collections.abc.AsyncIterable, AsyncIterator):
        (hint,) = typing.get_args(hint)
        streamed = True
    if isinstance(hint, type) and issubclass(hint, Message):
        return hint, streamed
    raise ContractError(
        f"{where}: {what} is annotated {getattr(hint, '__qualname__', hint)!r}. It takes and returns a subclass of "
        "Message, AsyncIterator of one, or nothing."
    )
