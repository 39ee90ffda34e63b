"""The system file: which services there are, where they are, and how they talk."""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path as FilePath
from typing import Any, Literal, cast

from polywire.bus.core import TopicSpec
from polywire.contract.policies import Shedding
from polywire.errors import SetupError, SystemFileError
from polywire.net.address import parse_address
from polywire.net.sharing import MAX_PROCESSES
from polywire.net.stream import Limits
from polywire.policy.faults import Fault
from polywire.policy.levels import Levels
from polywire.system import environment
from polywire.system.bus_wires import BackendUrls, bus_wires, schedule_wire
from polywire.system.call_keys import Calls as Calls
from polywire.system.call_keys import ServiceCalls, levels_of, read_calls, read_service_calls
from polywire.system.fault_keys import read_faults
from polywire.system.positions import positions
from polywire.system.reading import Settings, Table, did_you_mean, not_a_choice, reason, shown
from polywire.system.shedding_keys import read_shedding
from polywire.system.trust_keys import Tls as Tls
from polywire.system.trust_keys import check_allowed, read_shared_tls, read_tls, read_token
from polywire.telemetry.blocking import LIMIT

DEFAULT_FILE = "polywire.toml"
WIRES = ("connect", "grpc", "http", "local")
Wire = Literal["connect", "grpc", "http", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds that the life of a service may take."""

    start: float = 30.0
    """From the start of its process to its being ready."""
    drain_delay: float = 0.0
    """Between turning not ready and turning new connections away; what a load balancer needs to notice."""
    grace: float = 20.0
    """For the calls under way when the service stops."""
    blocking: float = LIMIT
    """That code may block the event loop before it is reported; 0 for never."""

    @property
    def stop(self) -> float:
        """From being asked to stop to the end of the last call."""
        return self.drain_delay + self.grace


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntry:
    """`[services.NAME]`: one process of the system, or something elsewhere that the system calls."""

    name: str
    app: str | None = None
    """`module:attribute`."""
    serves: tuple[str, ...] | None = None
    """The contracts it implements, by full name; None where the app itself says so."""
    listen: tuple[str, ...] | None = None
    address: tuple[str, ...] | None = None
    """Where others reach it; None where that is where it listens."""
    instances: int = 1
    """The processes of it that `up` runs on one port."""
    public: bool = False
    token: str | None = None
    """Where the token is with which it proves itself to others: `env:NAME` or `file:PATH`."""
    tls: Tls | None = None
    allow: tuple[str, ...] | None = None
    """The services that may call it; None is every one that proves who it is, where that is asked at all."""
    outside: bool = False
    """It is no part of the system, and is not told for whom it is called."""
    limits: Limits = field(default_factory=Limits)
    shedding: Shedding = field(default_factory=Shedding)
    """How many calls it works on at once: `shedding` of all services, and over that its own."""
    max_message_bytes: int | None = None
    stream_idle_timeout: float | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    calls: ServiceCalls = field(default_factory=ServiceCalls)
    """What its callers keep to."""

    @property
    def target(self) -> tuple[str, ...] | None:
        """The addresses that callers use, if any is known."""
        return self.address or self.listen

    @property
    def secure(self) -> bool:
        """Whether it is reached over TLS."""
        return self.tls is not None and self.tls.listen

    @property
    def asks_for_certificates(self) -> bool:
        """Whether its callers have to show a certificate."""
        return self.tls is not None and self.tls.listen and self.tls.ca is not None and not self.public


@dataclass(frozen=True, slots=True, kw_only=True)
class Wires:
    """`[wires]`: what each contract's calls travel on, and its tasks, and each topic's events."""

    default: Wire = "grpc"
    by_contract: Mapping[str, Wire] = field(default_factory=dict)
    tasks: BackendUrls = field(default_factory=BackendUrls)
    events: BackendUrls = field(default_factory=BackendUrls)
    schedule: str | None = None
    """Where schedules, results and the index of dead letters are kept that a backend keeps none of."""

    def of(self, contract: str) -> Wire:
        return self.by_contract.get(contract, self.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFile:
    """A system file as it holds after its profile and the environment."""

    name: str
    file: str
    """As errors name it."""
    directory: FilePath
    """Where relative paths and imports start."""
    services: Mapping[str, ServiceEntry]
    version: str = ""
    profile: str | None = None
    wires: Wires = field(default_factory=Wires)
    calls: Calls = field(default_factory=Calls)
    faults: tuple[Fault, ...] = ()
    """`[[faults]]`: what goes wrong from the start, on purpose."""
    topics: Mapping[str, TopicSpec] = field(default_factory=dict)
    """`[topics.NAME]`: topics of which more is said than their name."""
    settings: Settings = field(repr=False, compare=False, default_factory=lambda: Settings({}, {}, ""))

    def error(self, path: tuple[str, ...], problem: str) -> SystemFileError:
        """An error at a key of the file: its place, its name, and *problem*."""
        return self.settings.error(path, f"{'.'.join(path)} {problem}")

    def levels(self, service: str) -> Levels:
        """What is said about calls to *service*."""
        return levels_of(self.calls, self.services[service].calls, service)

    def path(self, name: str | None) -> FilePath | None:
        """A file that the system file names, relative to its own directory."""
        return None if name is None else self.directory / name

    def with_listen(self, addresses: Mapping[str, str]) -> SystemFile:
        """The same, where the services named listen at the addresses given (`up` picks them where none is written)."""
        services = {
            name: replace(entry, listen=(addresses[name],), address=None) if name in addresses else entry
            for name, entry in self.services.items()
        }
        return replace(self, services=services)

    def with_address(self, addresses: Mapping[str, Sequence[str]]) -> SystemFile:
        """The same, where the services named are called at the addresses given."""
        services = {
            name: replace(entry, address=tuple(addresses[name])) if name in addresses else entry
            for name, entry in self.services.items()
        }
        return replace(self, services=services)


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    profile: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> SystemFile:
    """Read a system file, `polywire.toml` unless *path* or POLYWIRE_SYSTEM names another.

    *profile*, or POLYWIRE_PROFILE, is laid over it, and environment variables over both. Raises SystemFileError naming
    the line or variable at fault.
    """
    environ = os.environ if environ is None else environ
    name = os.fspath(path or environ.get(environment.FILE) or DEFAULT_FILE)
    try:
        text = FilePath(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SystemFileError(
            f"There is no system file {name!r} in {FilePath.cwd()}. Write one, or name it: `--system FILE`, or "
            f"{environment.FILE} in the environment."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SystemFileError(f"The system file {name!r} cannot be read: {error}.") from error
    return parse(text, file=name, profile=profile, environ=environ)


def parse(
    text: str, *, file: str = DEFAULT_FILE, profile: str | None = None, environ: Mapping[str, str] | None = None
) -> SystemFile:
    """The system that *text* describes; *file* is its name in errors, and the place that relative paths start from."""
    environ = {} if environ is None else environ
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = str(error).rpartition("(at ")[2].rstrip(")")
        line = place.removeprefix("line ").partition(",")[0]
        at = f"{file}:{line}" if line.isdigit() else file
        raise SystemFileError(f"{at}: this is not TOML: {reason(error)}.") from error
    settings = Settings(values, positions(text), file)
    chosen = profile or environ.get(environment.PROFILE) or None
    _apply_profile(settings, chosen)
    environment.override(settings, environ)
    return _system(settings, chosen)


def _apply_profile(settings: Settings, profile: str | None) -> None:
    profiles = settings.values.pop("profiles", {})
    if not isinstance(profiles, dict):
        raise settings.error(("profiles",), f"profiles is {shown(profiles)}. It has to be a table.")
    for name, changes in profiles.items():
        # A profile that is not in use is checked too, as far as that can be done without the rest.
        if not isinstance(changes, dict):
            raise settings.error(("profiles", name), f"profiles.{name} is {shown(changes)}. It has to be a table.")
    if profile is None:
        return
    if profile not in profiles:
        raise SystemFileError(
            f"{settings.file} has no profile {profile!r}. {did_you_mean(profile, profiles)}"
            f"It has: {', '.join(sorted(profiles)) or 'none'}."
        )
    settings.lay_over(copy.deepcopy(profiles[profile]), ("profiles", profile))


def _system(settings: Settings, profile: str | None) -> SystemFile:
    top = Table(settings, (), settings.values, "the system file")
    system = top.table("system", "[system]")
    name = system.text("name")
    version = system.text("version")
    shared = read_shared_tls(system.table("tls", "[system.tls]"))
    system.done()
    if not name:
        raise settings.error(("system",), 'system.name is missing. Give the system a name: `[system] name = "shop"`.')
    services = top.table("services", "[services]")
    shedding = read_shedding(top.table("shedding", "[shedding]"))
    entries = {key: _service(services.table(key, "a service"), key, shared, shedding) for key in services.values}
    _refuse_names_alike(settings, list(entries))
    if not entries:
        raise settings.error(
            ("services",), 'there is no service. Add one: `[services.inventory]` with `app = "shop.inventory:app"`.'
        )
    check_allowed(settings, entries)
    wires = _wires(top.table("wires", "[wires]"))
    calls = read_calls(top.table("calls", "[calls]"))
    topics = top.table("topics", "[topics]")
    specs = {key: _topic(topics.table(key, "a topic"), key) for key in topics.values}
    faults = read_faults(top, entries)
    top.values.pop("profiles", None)
    top.mention("profiles")
    top.done()
    system_file = SystemFile(
        name=name,
        version=version or "",
        file=settings.file,
        directory=FilePath(settings.file).absolute().parent,
        profile=profile,
        services=entries,
        wires=wires,
        calls=calls,
        faults=faults,
        topics=specs,
        settings=settings,
    )
    _refuse_shared_addresses(system_file)
    return system_file


def _refuse_names_alike(settings: Settings, names: list[str]) -> None:
    """Environment variables could not tell `order-events` from `order.events`."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(environment.spelled((name,)), name)
        if other != name:
            raise settings.error(
                ("services", name),
                f"the services {other!r} and {name!r} have the same name in environment variables, "
                f"{environment.spelled(('services', name))}. Rename one of them.",
            )


def _service(table: Table, name: str, shared: Tls | None, shedding: Shedding) -> ServiceEntry:
    app = table.text("app")
    address = _addresses(table, "address")
    serves = table.texts("serves", or_none=True)
    instances = _instances(table)
    tls = None
    if "tls" in table.values or shared is not None:
        tls = read_tls(table.table("tls", "[tls]"), name, shared or Tls(), runs_here=app is not None)
    table.mention("tls")
    message_bytes, idle, limits = _limits(table.table("limits", "[limits]"))
    entry = ServiceEntry(
        name=name,
        app=app,
        serves=serves,
        listen=_addresses(table, "listen", for_listening=True),
        address=address,
        instances=instances,
        public=bool(table.boolean("public")),
        token=read_token(table),
        tls=tls,
        allow=table.texts("allow"),
        limits=limits,
        shedding=read_shedding(table.table("shedding", "[shedding]"), shedding),
        max_message_bytes=message_bytes,
        stream_idle_timeout=idle,
        timeouts=_timeouts(table.table("timeouts", "[timeouts]")),
        calls=read_service_calls(table.table("calls", "what the callers of a service keep to")),
    )
    table.done()
    if app is not None and not _is_app_path(app):
        raise table.error("app", f"is {app!r}. It has to be 'module:attribute', for example 'shop.inventory:app'.")
    if app is None and (address is None or not serves):
        raise table.settings.error(
            table.path,
            f'services.{name} has no app. Give it one, `app = "shop.{name}:app"`; or, if it runs elsewhere, '
            "`address` and `serves`, the full names of its contracts.",
        )
    return entry


def _instances(table: Table) -> int:
    instances = table.integer("instances")
    if instances is None:
        return 1
    if instances > MAX_PROCESSES:
        raise table.error("instances", f"is {instances}. A service runs as {MAX_PROCESSES} processes at most.")
    return instances


def _is_app_path(text: str) -> bool:
    module, colon, attribute = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def _addresses(table: Table, key: str, *, for_listening: bool = False) -> tuple[str, ...] | None:
    addresses = table.texts(key)
    for text in addresses or ():
        try:
            address = parse_address(text)
        except SetupError as error:
            raise table.error(key, f"is no place: {error}") from error
        if for_listening and (address.resolve or address.scheme):
            raise table.error(
                key, f"is {text!r}, which is how clients write it. Write the host and port to bind, or unix:/path."
            )
    return addresses


def _limits(table: Table) -> tuple[int | None, float | None, Limits]:
    chosen: dict[str, Any] = {}
    for limit in fields(Limits):
        value = table.integer(limit.name) if limit.type == "int" else table.number(limit.name)
        if value is not None:
            chosen[limit.name] = value
    message_bytes = table.integer("max_message_bytes")
    idle = table.number("stream_idle_timeout")
    table.done()
    return message_bytes, idle, Limits(**chosen)


def _timeouts(table: Table) -> Timeouts:
    chosen = {name: table.number(name) for name in ("start", "drain_delay", "grace", "blocking")}
    table.done()
    return Timeouts(**{name: value for name, value in chosen.items() if value is not None})


def _wires(table: Table) -> Wires:
    default, by_contract = _rpc_wires(table)
    tasks, events, schedule = bus_wires(table, "tasks"), bus_wires(table, "events"), schedule_wire(table)
    table.done()
    return Wires(default=default, by_contract=by_contract, tasks=tasks, events=events, schedule=schedule)


def _rpc_wires(table: Table) -> tuple[Wire, dict[str, Wire]]:
    rpc = table.raw("rpc")
    if rpc is None:
        return "grpc", {}
    if isinstance(rpc, str):
        return _wire(table, "rpc", rpc), {}
    if not isinstance(rpc, dict):
        raise table.error("rpc", f"is {shown(rpc)}. It has to be the name of a wire, or a table of them by contract.")
    inner = Table(table.settings, (*table.path, "rpc"), rpc, "[wires.rpc]")
    by_contract: dict[str, Wire] = {key: _wire(inner, key, value) for key, value in rpc.items() if key != "default"}
    return _wire(inner, "default", rpc.get("default", "grpc")), by_contract


def _wire(table: Table, key: str, value: Any) -> Wire:
    if not isinstance(value, str):
        raise table.error(key, f"is {shown(value)}. It has to be the name of a wire: {', '.join(WIRES)}.")
    if value not in WIRES:
        raise table.error(key, f"is {str(value)!r}, {not_a_choice(value, list(WIRES))}")
    return cast(Wire, str(value))


def _topic(table: Table, name: str) -> TopicSpec:
    usual = TopicSpec(name=name)
    partitions, retention_bytes = table.integer("partitions"), table.integer("retention_bytes")
    keep = table.boolean("keep_forever")
    retention = table.number("retention", least=1.0)
    table.done()
    if keep and retention is not None:
        raise table.error("retention", f"is {retention:g}, but {table.name('keep_forever')} is true. Say one of them.")
    return TopicSpec(
        name=name,
        partitions=partitions or usual.partitions,
        retention=None if keep else retention or usual.retention,
        retention_bytes=retention_bytes,
    )


def _refuse_shared_addresses(system: SystemFile) -> None:
    taken: dict[str, str] = {}
    for name, entry in system.services.items():
        for text in entry.listen or ():
            address = parse_address(text)
            if not address.path and address.port == 0:
                continue
            other = taken.setdefault(str(address), name)
            if other != name:
                raise system.error(
                    ("services", name, "listen"),
                    f"is {text!r}, where services.{other} listens already "
                    f"({system.settings.where(('services', other, 'listen'))}). Give one of them another port.",
                )
