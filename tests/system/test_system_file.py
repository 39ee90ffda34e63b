"""What a system file may say, and the whole sentence with which anything else is refused."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pytest

from polywire.errors import SystemFileError
from polywire.net.stream import Limits
from polywire.system.file import Calls, ServiceEntry, SystemFile, Timeouts, Tls, Wires, load, parse

SHOP = """\
[system]
name = "shop"

[services.gateway]
app = "shop.gateway:app"
listen = "127.0.0.1:8000"
public = true

[services.order-events]
app = "shop.orders:app"

[wires]
rpc = "grpc"
"""


def shop(more: str = "", *, profile: str | None = None, environ: Mapping[str, str] | None = None) -> SystemFile:
    return parse(SHOP + textwrap.dedent(more), profile=profile, environ=environ)


def refusal(text: str, *, profile: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(SystemFileError) as caught:
        parse(textwrap.dedent(text), profile=profile, environ=environ)
    return str(caught.value)


def test_a_small_file_reads_as_it_looks() -> None:
    system = shop()

    assert system.name == "shop"
    assert dict(system.services) == {
        "gateway": ServiceEntry(name="gateway", app="shop.gateway:app", listen=("127.0.0.1:8000",), public=True),
        "order-events": ServiceEntry(name="order-events", app="shop.orders:app"),
    }
    assert system.wires == Wires(default="grpc")
    assert system.calls == Calls()


def test_everything_that_can_be_said_is_kept() -> None:
    system = parse(
        textwrap.dedent("""\
        [system]
        name = "shop"
        version = "1.2"

        [services.stock]
        app = "shop.stock:app"
        listen = ["127.0.0.1:1", "unix:/run/stock.sock"]
        address = ["10.0.0.1:1", "10.0.0.2:1"]
        serves = "shop.v1.Inventory"
        instances = 1
        token = "env:STOCK_TOKEN"
        tls = { certificate = "stock.pem", key = "stock.key", ca = "ca.pem" }
        limits = { max_connections = 5, idle_timeout = 3, max_message_bytes = 9, stream_idle_timeout = 2.5 }
        timeouts = { start = 1, drain_delay = 2, grace = 3 }

        [wires]
        rpc = { default = "http", "shop.v1.Inventory" = "connect" }

        [calls]
        timeout = 2
        retries = 0
        retry_base = 0.1
        retry_cap = 1
        budget_share = 0.5
        budget_minimum = 1
        wait_for_ready = true
        """)
    )

    assert system.version == "1.2"
    assert system.services["stock"] == ServiceEntry(
        name="stock",
        app="shop.stock:app",
        serves=("shop.v1.Inventory",),
        listen=("127.0.0.1:1", "unix:/run/stock.sock"),
        address=("10.0.0.1:1", "10.0.0.2:1"),
        token="env:STOCK_TOKEN",
        tls=Tls(certificate="stock.pem", key="stock.key", ca="ca.pem"),
        limits=Limits(max_connections=5, idle_timeout=3.0),
        max_message_bytes=9,
        stream_idle_timeout=2.5,
        timeouts=Timeouts(start=1.0, drain_delay=2.0, grace=3.0),
    )
    assert system.wires.of("shop.v1.Inventory") == "connect"
    assert system.wires.of("shop.v1.Orders") == "http"
    assert system.calls == Calls(
        timeout=2.0, retries=0, retry_base=0.1, retry_cap=1.0, budget_share=0.5, budget_minimum=1.0, wait_for_ready=True
    )


REFUSALS = {
    "an unknown key of a service": (
        '[system]\nname = "shop"\n[services.inventory]\napp = "shop.inventory:app"\nlisen = "127.0.0.1:1"\n',
        "polywire.toml:5: services.inventory.lisen is not a key of a service. Did you mean 'listen'? "
        "A service has: address, allow, app, calls, instances, limits, listen, public, serves, "
        "shedding, timeouts, tls, token.",
    ),
    "an unknown table": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\n\n[wire]\nrpc = "grpc"\n',
        "polywire.toml:6: wire is not a key of the system file. Did you mean 'wires'? "
        "The system file has: calls, faults, profiles, services, shedding, system, topics, wires.",
    ),
    "an unknown limit in an inline table": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\nlimits = { max_conections = 5 }\n',
        "polywire.toml:5: services.a.limits.max_conections is not a key of [limits]. Did you mean 'max_connections'? "
        "[limits] has: body_timeout, connection_window, header_timeout, idle_timeout, keepalive_interval, "
        "keepalive_timeout, max_body_bytes, max_concurrent_streams, max_connections, max_header_bytes, "
        "max_header_count, max_message_bytes, stream_idle_timeout, stream_window, write_high_water.",
    ),
    "a wrong wire": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\n[wires]\nrpc = "gprc"\n',
        "polywire.toml:6: wires.rpc is 'gprc', which is none of the choices. Did you mean 'grpc'? "
        "Choose one of: connect, grpc, http, local.",
    ),
    "a wrong wire of one contract": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\n[wires.rpc]\n"shop.v1.Inventory" = "smtp"\n',
        "polywire.toml:6: wires.rpc.\"shop.v1.Inventory\" is 'smtp', which is none of the choices. "
        "Choose one of: connect, grpc, http, local.",
    ),
    "a wrong type": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\npublic = "yes"\n',
        "polywire.toml:5: services.a.public is the text 'yes'. It has to be true or false.",
    ),
    "a boolean for a number": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\n[calls]\nretries = true\n',
        "polywire.toml:6: calls.retries is true. It has to be a whole number.",
    ),
    "a negative number": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\n[calls]\ntimeout = -1\n',
        "polywire.toml:6: calls.timeout is -1. It has to be at least 0.",
    ),
    "too many instances": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\ninstances = 257\n',
        "polywire.toml:5: services.a.instances is 257. A service runs as 256 processes at most.",
    ),
    "no instances": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\ninstances = 0\n',
        "polywire.toml:5: services.a.instances is 0. It has to be at least 1.",
    ),
    "an address without a port": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\nlisten = "localhost"\n',
        "polywire.toml:5: services.a.listen is no place: 'localhost' is not an address: the port is missing. "
        "Write host:port, [::1]:port, unix:/path or dns:///host:port, with grpc://, grpcs://, http:// or https:// "
        "before it if need be.",
    ),
    "a client's address to listen at": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\nlisten = "dns:///a:1"\n',
        "polywire.toml:5: services.a.listen is 'dns:///a:1', which is how clients write it. Write the host and port to "
        "bind, or unix:/path.",
    ),
    "two services at one address": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\nlisten = "127.0.0.1:1"\n'
        '[services.b]\napp = "b:app"\nlisten = "127.0.0.1:1"\n',
        "polywire.toml:8: services.b.listen is '127.0.0.1:1', where services.a listens already (polywire.toml:5). "
        "Give one of them another port.",
    ),
    "an app that is no path": (
        '[system]\nname = "shop"\n[services.a]\napp = "shop.a"\n',
        "polywire.toml:4: services.a.app is 'shop.a'. It has to be 'module:attribute', for example "
        "'shop.inventory:app'.",
    ),
    "a service that is nowhere": (
        '[system]\nname = "shop"\n[services.a]\naddress = "10.0.0.1:1"\n',
        "polywire.toml:3: services.a has no app. Give it one, `app = \"shop.a:app\"`; or, if it runs elsewhere, "
        "`address` and `serves`, the full names of its contracts.",
    ),
    "a secret in the file": (
        '[system]\nname = "shop"\n[services.a]\napp = "a:app"\ntoken = "hunter2"\n',
        "polywire.toml:5: services.a.token does not say where the token is. Write 'env:NAME' or 'file:PATH'; secrets "
        "stay out of this file.",
    ),
    "two names that variables could not tell apart": (
        '[system]\nname = "shop"\n[services.a-b]\napp = "a:app"\n[services.a_b]\napp = "b:app"\n',
        "polywire.toml:5: the services 'a-b' and 'a_b' have the same name in environment variables, "
        "POLYWIRE__SERVICES__A_B. Rename one of them.",
    ),
    "no name": (
        '[services.a]\napp = "a:app"\n',
        'polywire.toml: system.name is missing. Give the system a name: `[system] name = "shop"`.',
    ),
    "no services": (
        '[system]\nname = "shop"\n',
        "polywire.toml: there is no service. Add one: `[services.inventory]` with `app = \"shop.inventory:app\"`.",
    ),
    "not TOML": (
        '[system]\nname = "shop\n',
        "polywire.toml:2: this is not TOML: illegal character '\\n'.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_with_its_line_and_the_choices(name: str) -> None:
    text, message = REFUSALS[name]

    assert refusal(text) == message


PROFILES = """
[profiles.production.services.gateway]
listen = "0.0.0.0:80"

[profiles.production.wires]
rpc = { default = "http" }

[profiles.broken.services.gateway]
listen = 80
"""


def test_a_profile_is_laid_over_the_rest_key_by_key() -> None:
    system = shop(PROFILES, profile="production")

    assert system.profile == "production"
    assert system.services["gateway"].listen == ("0.0.0.0:80",)
    assert system.services["gateway"].public is True
    assert system.wires.default == "http"
    assert shop(PROFILES).wires.default == "grpc"


def test_the_environment_can_choose_the_profile() -> None:
    assert shop(PROFILES, environ={"POLYWIRE_PROFILE": "production"}).profile == "production"


def test_an_error_in_a_profile_names_the_line_in_the_profile() -> None:
    assert refusal(SHOP + PROFILES, profile="broken") == (
        "polywire.toml:22: services.gateway.listen is 80. It has to be text, or an array of texts that is not empty."
    )


def test_an_unknown_profile_is_refused() -> None:
    assert refusal(SHOP + PROFILES, profile="prodution") == (
        "polywire.toml has no profile 'prodution'. Did you mean 'production'? It has: broken, production."
    )


def test_environment_variables_override_every_kind_of_key() -> None:
    system = shop(
        PROFILES,
        profile="production",
        environ={
            "POLYWIRE__SYSTEM__NAME": "8",
            "POLYWIRE__SERVICES__GATEWAY__LISTEN": "127.0.0.1:1, unix:/run/gateway.sock",
            "POLYWIRE__SERVICES__GATEWAY__PUBLIC": "false",
            "POLYWIRE__SERVICES__ORDER_EVENTS__TIMEOUTS__GRACE": "2.5",
            "POLYWIRE__SERVICES__ORDER_EVENTS__LIMITS__MAX_CONNECTIONS": "7",
            "POLYWIRE__WIRES__RPC": '{ default = "local", "shop.v1.Inventory" = "grpc" }',
            "POLYWIRE__CALLS__RETRIES": "0",
            "UNRELATED": "1",
        },
    )

    assert system.name == "8"
    assert system.services["gateway"].listen == ("127.0.0.1:1", "unix:/run/gateway.sock")
    assert system.services["gateway"].public is False
    assert system.services["order-events"].timeouts == Timeouts(grace=2.5)
    assert system.services["order-events"].limits == Limits(max_connections=7)
    assert system.wires == Wires(default="local", by_contract={"shop.v1.Inventory": "grpc"})
    assert system.calls.retries == 0


def test_a_service_may_implement_nothing_as_the_environment_has_it() -> None:
    for text, serves in (("", ()), (" , ", ()), ("shop.v1.Gateway,", ("shop.v1.Gateway",))):
        assert shop(environ={"POLYWIRE__SERVICES__GATEWAY__SERVES": text}).services["gateway"].serves == serves


ENVIRONMENT_REFUSALS = {
    "no place to listen": (
        {"POLYWIRE__SERVICES__GATEWAY__LISTEN": ""},
        "POLYWIRE__SERVICES__GATEWAY__LISTEN: services.gateway.listen is the text ''. It has to be text, or an array "
        "of texts that is not empty.",
    ),
    "an unknown key": (
        {"POLYWIRE__SERVICES__GATEWAY__LISEN": "1"},
        "POLYWIRE__SERVICES__GATEWAY__LISEN: services.gateway.lisen is not a key of a service. Did you mean 'listen'? "
        "A service has: address, allow, app, calls, instances, limits, listen, public, serves, "
        "shedding, timeouts, tls, token.",
    ),
    "an unknown service": (
        {"POLYWIRE__SERVICES__GATWAY__LISTEN": "1"},
        "POLYWIRE__SERVICES__GATWAY__LISTEN names the service 'gatway', which polywire.toml does not have. "
        "Did you mean 'gateway'? It has: gateway, order-events.",
    ),
    "a wrong type": (
        {"POLYWIRE__CALLS__RETRIES": "many"},
        "POLYWIRE__CALLS__RETRIES: calls.retries is the text 'many'. It has to be a whole number.",
    ),
    "a key inside of a value": (
        {"POLYWIRE__WIRES__RPC__DEFAULT": "http"},
        "POLYWIRE__WIRES__RPC__DEFAULT wants to set a key inside of wires.rpc, which is the text 'grpc' "
        "(polywire.toml:13). Set POLYWIRE__WIRES__RPC instead.",
    ),
    "a wrong wire": (
        {"POLYWIRE__WIRES__RPC": "htpp"},
        "POLYWIRE__WIRES__RPC: wires.rpc is 'htpp', which is none of the choices. Did you mean 'http'? "
        "Choose one of: connect, grpc, http, local.",
    ),
    "not TOML": (
        {"POLYWIRE__WIRES__RPC": "{ default = }"},
        "POLYWIRE__WIRES__RPC: wires.rpc is the text '{ default = }'. It has to be a table, written as TOML: "
        "invalid value.",
    ),
    "a part that is empty": (
        {"POLYWIRE__SERVICES____LISTEN": "1"},
        "POLYWIRE__SERVICES____LISTEN names no key of polywire.toml. Write two underscores between its parts, for "
        "example POLYWIRE__SERVICES__INVENTORY__LISTEN.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENVIRONMENT_REFUSALS)
def test_an_impossible_variable_is_refused_by_its_name(name: str) -> None:
    environ, message = ENVIRONMENT_REFUSALS[name]

    assert refusal(SHOP, environ=environ) == message


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemFileError) as caught:
        load(environ={"POLYWIRE_SYSTEM": "shop.toml"})

    assert str(caught.value) == (
        f"There is no system file 'shop.toml' in {tmp_path}. Write one, or name it: `--system FILE`, or "
        "POLYWIRE_SYSTEM in the environment."
    )


def test_a_file_on_disk_is_read_with_its_directory(tmp_path: Path) -> None:
    (tmp_path / "polywire.toml").write_text(SHOP)

    system = load(tmp_path / "polywire.toml", environ={})

    assert system.directory == tmp_path
    assert sorted(system.services) == ["gateway", "order-events"]


def test_the_reference_shows_a_file_that_can_be_read() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "system-file.md"
    text = page.read_text().partition("```toml\n")[2].partition("```")[0]

    system = parse(text, file=str(page))
    production = parse(text, file=str(page), profile="production")

    assert system.calls == Calls(
        timeout=10.0,
        retries=2,
        retry_base=0.05,
        retry_cap=2.0,
        budget_share=0.2,
        budget_minimum=3.0,
        wait_for_ready=False,
    )
    assert production.services["inventory"].listen == ("0.0.0.0:8001",)
