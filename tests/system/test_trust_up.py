"""`polywire up` with certificates and tokens: who gets in, who does not, and what changes while calls run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from grpc_support import grpc
from tiny.contracts import Inventory, Orders, Query
from trust_support import Authority, write
from up_support import TINY, Running, polywire, said, tiny

from polywire import CallDefaults, Contract, PermissionDenied, Retry, Unauthenticated, Unavailable
from polywire.client import client_for
from polywire.connecting import RemoteWire, channel_to
from polywire.net.tls import ClientTls
from polywire.system.tokens import RECHECK

SOON = 60.0
ONCE = CallDefaults(retry=Retry(attempts=1), timeout=SOON)
WIRES: list[RemoteWire] = ["grpc", "connect", "http"]
LOST = {
    "grpc": "the connection was lost",
    "connect": "the connection was lost",
    "http": "the server closed the connection before the response",
}
MUTUAL = """\
[system]
name = "tiny"
tls = { certificate = "tls/{service}.pem", ca = "tls/ca.pem", server_name = "{service}" }

[services.orders]
app = "tiny.orders:app"

[services.inventory]
app = "tiny.inventory:app"
allow = ["orders"]

[services.reports]
address = "127.0.0.1:1"
serves = ["tiny.v1.Reports"]
"""


class Place:
    """A directory with a system whose services show certificates to each other, and those of others."""

    def __init__(self, directory: Path, text: str = MUTUAL) -> None:
        self.directory = tiny(directory, text)
        self.tls = directory / "tls"
        self.tls.mkdir()
        self.authority = Authority(self.tls)
        self.authority.trusted()
        for service in ("orders", "inventory", "reports"):
            self.authority.issue(f"{service}.pem", service, service=service)
        stranger = Authority(self.tls)
        stranger.issue("forged.pem", "orders", service="orders")

    def shows(self, file: str | None, to: str, ca: str = "ca.pem") -> ClientTls:
        certificate = None if file is None else self.tls / file
        return ClientTls(ca=self.tls / ca, certificate=certificate, server_name=to)


async def called(contract: type[Contract], address: str, wire: RemoteWire, **options: object) -> int:
    """The quantity that one call over a new connection is answered with, without a second attempt."""
    channel = channel_to(address, wire=wire, defaults=ONCE, **options)  # type: ignore[arg-type]  # as they come
    try:
        if contract is Orders:
            return (await client_for(Orders, channel).place(Query(product_id="a"))).quantity
        return (await client_for(Inventory, channel).check_stock(Query(product_id="a"))).quantity
    finally:
        await channel.close()


@contextlib.asynccontextmanager
async def started(place: Place, *options: str, scheme: str = "https") -> AsyncIterator[tuple[Running, str, str]]:
    """The system, with the addresses of orders and inventory; nothing of a secret or of our insides may be said."""
    async with polywire("up", *options, directory=place.directory) as running:
        orders = (await running.until(rf"^orders +{scheme}://(\S+)"))[1]
        inventory = (await running.until(rf"^inventory +{scheme}://(\S+)"))[1]
        yield running, orders, inventory
        running.interrupt()
        assert await running.ends() == 0
    assert [line for line in running.said if "Traceback" in line or "PRIVATE" in line] == []


@pytest.mark.parametrize("options", [(), ("--in-process",)])
async def test_services_and_strangers_with_certificates(tmp_path: Path, options: tuple[str, ...]) -> None:
    place = Place(tmp_path)
    async with started(place, *options) as (running, orders, inventory):
        for wire in WIRES:
            # Everybody with a certificate may order; inventory is for orders alone, which asks it by its own.
            assert await called(Orders, orders, wire, tls=place.shows("reports.pem", "orders")) == 7
            assert await called(Inventory, inventory, wire, tls=place.shows("orders.pem", "inventory")) == 7
            with pytest.raises(PermissionDenied) as denied:
                await called(Inventory, inventory, wire, tls=place.shows("reports.pem", "inventory"))
            assert str(denied.value) == "tiny.v1.Inventory/CheckStock was refused: this caller may not call it."
            # Without a certificate, or with one of somebody else, the handshake fails, before any call is heard of.
            for nobody in (None, "forged.pem"):
                with pytest.raises(Unavailable) as refused:
                    await called(Inventory, inventory, wire, tls=place.shows(nobody, "inventory"))
                assert (
                    re.sub(r"(: | \()\[Errno.*", ".", str(refused.value))
                    == f"{inventory} did not answer: {LOST[wire]}."
                )
            # And nobody takes one service for another.
            with pytest.raises(Unavailable, match="its certificate is not accepted: Hostname mismatch"):
                await called(Orders, orders, wire, tls=place.shows("reports.pem", "inventory"))
        await running.until(r"tiny\.v1\.Inventory/CheckStock PERMISSION_DENIED rest .* caller=reports")
    lines = [line for line in running.said if "Inventory/CheckStock" in line]
    assert len(lines) == 3 * len(WIRES)


async def test_a_call_from_the_command_line_shows_a_certificate(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with started(place):
        refused = "tiny.v1.Inventory/CheckStock was refused: this caller may not call it."
        for file, expected in (
            ("tls/orders.pem", (0, '{"product_id":"a","quantity":7,"pid":')),
            ("tls/reports.pem", (1, f"Error: permission_denied: {refused}\n")),
        ):
            call = ("call", "tiny.v1.Inventory/check_stock", "product_id=a", "--certificate", file)
            status, output = await said(*call, directory=place.directory)
            assert (status, output[: len(expected[1])]) == expected


async def curl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "curl", "-s", "-m", "20", "-w", "\n%{http_code}", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    body, _, status = out.decode().rpartition("\n")
    assert process.returncode is not None
    return (int(status) if process.returncode == 0 else -process.returncode), body


async def test_curl_and_grpcio_get_in_by_certificate(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with started(place) as (_, _, inventory):
        port = inventory.rpartition(":")[2]
        url = f"https://inventory:{port}/inventory/a"
        common = ["--cacert", str(place.tls / "ca.pem"), "--resolve", f"inventory:{port}:127.0.0.1", url]
        for http in ("--http1.1", "--http2"):
            status, body = await curl(http, "--cert", str(place.tls / "orders.pem"), *common)
            assert (status, json.loads(body)["quantity"]) == (200, 7)
            status, body = await curl(http, "--cert", str(place.tls / "reports.pem"), *common)
            assert status == 403
            assert json.loads(body)["error"] == {
                "code": "permission_denied",
                "message": "tiny.v1.Inventory/CheckStock was refused: this caller may not call it.",
                "field": None,
            }
            for nobody in ([], ["--cert", str(place.tls / "forged.pem")]):
                status, body = await curl(http, *nobody, *common)
                assert (status < 0, body) == (True, "")
        for file, code in (("orders.pem", None), ("reports.pem", "PERMISSION_DENIED"), ("forged.pem", "UNAVAILABLE")):
            assert await _by_grpcio(place, inventory, file) == code


async def _by_grpcio(place: Place, address: str, file: str) -> str | None:
    """The code that grpcio gets, or None for an answer."""
    pem = (place.tls / file).read_bytes()
    credentials = grpc.ssl_channel_credentials((place.tls / "ca.pem").read_bytes(), pem, pem)
    options = [("grpc.ssl_target_name_override", "inventory")]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            await channel.unary_unary("/tiny.v1.Inventory/CheckStock")(b"\n\x01a", timeout=SOON)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return None


class Callers:
    """Call without a pause, over a new connection each time, and count what comes of it."""

    def __init__(self, *calls: Callable[[], Awaitable[int]]) -> None:
        self.answered: Counter[int] = Counter()
        self.failures: list[Exception] = []
        self._tasks = [asyncio.ensure_future(self._run(number, call)) for number, call in enumerate(calls)]

    async def _run(self, number: int, call: Callable[[], Awaitable[int]]) -> None:
        while True:
            try:
                assert await call() == 7
                self.answered[number] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, no call may fail
                self.failures.append(error)
                return

    async def go_on(self, calls: int = 2) -> None:
        """Return once each has called that often again."""
        wanted = {number: self.answered[number] + calls for number in range(len(self._tasks))}
        async with asyncio.timeout(SOON):
            while any(self.answered[number] < count for number, count in wanted.items()):
                assert self.failures == []
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        assert self.failures == []


@pytest.mark.slow
async def test_an_authority_is_replaced_while_calls_run_and_none_fails(tmp_path: Path) -> None:
    place = Place(tmp_path)
    old, new = place.authority, Authority(place.tls)
    old.trusted("both.pem", new)
    old.issue("mine.pem", "orders", service="orders")
    write(place.tls / "kept.pem", (place.tls / "mine.pem").read_bytes())
    async with started(place) as (running, orders, inventory):

        def by(contract: type[Contract], wire: RemoteWire, address: str, service: str) -> Callable[[], Awaitable[int]]:
            return lambda: called(contract, address, wire, tls=place.shows("mine.pem", service, ca="both.pem"))

        callers = Callers(
            *[by(Orders, wire, orders, "orders") for wire in WIRES],
            *[by(Inventory, wire, inventory, "inventory") for wire in WIRES],
        )

        async def in_use() -> None:
            """Both listeners have seen the new files."""
            waiting = {"orders", "inventory"}
            while waiting:
                found = await running.until(r"^(\w+) +\| .* INFO +new connections use what is in ")
                waiting.discard(found[1])
            await callers.go_on()

        await callers.go_on()
        old.trusted("ca.pem", new)
        await in_use()
        for file, service in (("orders", "orders"), ("inventory", "inventory"), ("mine", "orders")):
            new.issue(f"{file}.pem", service, service=service)
        await in_use()
        new.trusted("ca.pem")
        await in_use()
        await callers.stop()
        # The old authority is not trusted by anybody any more.
        with pytest.raises(Unavailable):
            await called(Inventory, inventory, "grpc", tls=place.shows("kept.pem", "inventory"))
        # Orders has kept its connection all the time. Now it needs a new one, and has what that takes.
        channel = channel_to(inventory, defaults=ONCE, tls=place.shows("mine.pem", "inventory"))
        with pytest.raises(Unavailable):
            await client_for(Inventory, channel).crash()
        await channel.close()
        patient = place.shows("mine.pem", "orders")
        async with asyncio.timeout(SOON):
            while not await _answers(Orders, orders, patient):  # noqa: ASYNC110 - asking is the only way to know
                await asyncio.sleep(0.05)


async def _answers(contract: type[Contract], address: str, tls: ClientTls) -> bool:
    try:
        return await called(contract, address, "grpc", tls=tls) == 7
    except Unavailable:
        return False


@pytest.mark.slow
async def test_a_broken_certificate_leaves_the_old_one_until_it_is_mended(tmp_path: Path) -> None:
    place = Place(tmp_path)
    good = (place.tls / "inventory.pem").read_bytes()
    async with started(place) as (running, _, inventory):
        callers = Callers(lambda: called(Inventory, inventory, "grpc", tls=place.shows("orders.pem", "inventory")))
        write(place.tls / "inventory.pem", good[: len(good) // 2])
        found = await running.until(r"^inventory +\| \S+ ERROR +(.*)")
        path = place.tls / "inventory.pem"
        assert found[1].startswith(f"The certificate '{path}' with the key in '{path}' cannot be used: ")
        assert found[1].endswith(" What was loaded before stays in use until the files are right. (polywire.tls)")
        await callers.go_on()
        place.authority.issue("inventory.pem", "inventory", service="inventory")
        await running.until(r"^inventory +\| \S+ INFO +new connections use what is in ")
        await callers.go_on()
        await callers.stop()


async def test_what_could_not_be_trusted_is_told_at_the_start(tmp_path: Path) -> None:
    """Also where it is what a service calls by, and not what it listens with."""
    text = MUTUAL.replace('"tiny.inventory:app"\n', '"tiny.inventory:app"\ntls = { ca = "tls/other.pem" }\n')
    place = Place(tmp_path, text)
    status, output = await said("up", "--only", "orders", directory=place.directory)
    assert (status, output.splitlines()[-1]) == (
        1,
        f"Error: Service 'orders' did not start: The CA file '{place.directory}/tls/other.pem' cannot be read: "
        "no such file or directory.",
    )


async def test_keys_that_others_may_read_and_certificates_that_end_are_mentioned_at_the_start(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.authority.issue("orders.pem", "orders", service="orders", days=3).chmod(0o644)
    async with started(place) as (running, _, _):
        pass
    orders = place.tls / "orders.pem"
    warnings = [line.partition("WARNING")[2].strip() for line in running.said if "WARNING" in line]
    assert all(line.endswith(" (polywire.system)") for line in warnings)
    warnings = [line.removesuffix(" (polywire.system)") for line in warnings]
    assert warnings[0].startswith(f"the certificate of service 'orders' in '{orders}' ends on ")
    assert warnings[0].endswith(", within 3 days. Replace the file; it is read again without a restart.")
    assert warnings[1] == (
        f"the key of service 'orders' in '{orders}' can be read by every user of this machine (mode 0644). "
        "Keep it to its owner: chmod 600."
    )
    assert len(warnings) == 2


@pytest.mark.slow
async def test_tokens_are_replaced_while_calls_run_and_none_fails(tmp_path: Path) -> None:
    text = TINY.replace('orders:app"\n', 'orders:app"\ntoken = "file:orders.token"\n') + 'allow = ["orders"]\n'
    token = write(tmp_path / "orders.token", b"s3cret-1")
    place = Place(tmp_path, text)
    async with started(place, scheme="http") as (running, orders, inventory):
        mine = "s3cret-1"

        def by(contract: type[Contract], wire: RemoteWire, address: str) -> Callable[[], Awaitable[int]]:
            return lambda: called(contract, address, wire, token=lambda: mine)

        async def known(text: str) -> None:
            """Both services take *text* for the token of orders."""
            async with asyncio.timeout(SOON):
                for contract, address in ((Orders, orders), (Inventory, inventory)):
                    while not await _is_known(contract, address, text):  # noqa: ASYNC110 - as above
                        await asyncio.sleep(0.05)

        callers = Callers(*[by(Orders, wire, orders) for wire in WIRES], by(Inventory, "grpc", inventory))
        await callers.go_on()
        write(token, b"s3cret-1\ns3cret-2\n")
        await known("s3cret-2")
        write(token, b"s3cret-2\ns3cret-1\n")
        mine = "s3cret-2"
        # As the guide has it: each looks at its file once a second, and only then is the old one out of use.
        await asyncio.sleep(3 * RECHECK)
        await callers.go_on(50)
        write(token, b"s3cret-2\n")
        async with asyncio.timeout(SOON):
            for contract, address in ((Orders, orders), (Inventory, inventory)):
                while await _is_known(contract, address, "s3cret-1"):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
        await callers.go_on(50)
        await callers.stop()
        with pytest.raises(Unauthenticated) as refused:
            await called(Inventory, inventory, "grpc", token="s3cret-1")
        assert str(refused.value) == "tiny.v1.Inventory/CheckStock was refused: the credentials are not valid here."
    assert "s3cret" not in "\n".join(running.said)


async def _is_known(contract: type[Contract], address: str, token: str) -> bool:
    try:
        return await called(contract, address, "grpc", token=token) == 7
    except Unauthenticated:
        return False


# For whom it is called: from a public face through the system, and no further.

FACES = """\
from polywire import App, Contract, Message, allow, connect, current, get, rpc


class Who(Message, package="faces.v1"):
    user: str | None = None
    address: str = ""
    seen: list[str] = []


class Back(Contract, package="faces.v1"):
    @rpc
    async def who(self) -> Who:
        raise NotImplementedError


class Middle(Contract, package="faces.v1"):
    @rpc
    async def who(self) -> Who:
        raise NotImplementedError


class Front(Contract, package="faces.v1"):
    @rpc(get("/who"))
    async def who(self, who: Who) -> Who:
        raise NotImplementedError


def told(*before: str) -> Who:
    call = current()
    return Who(seen=[*before, f"{call.caller} for {call.principal}"])


back = App("back")
middle = App("middle")
front = App("front")


@back.service
@allow("middle", "front")
class BackService(Back):
    async def who(self) -> Who:
        return told()


@middle.service
class MiddleService(Middle):
    def __init__(self, back: Back) -> None:
        self.back = back

    @allow(lambda call: call.caller == "front" and call.principal != "eve")
    async def who(self) -> Who:
        return told(*(await self.back.who()).seen)


@front.service
class FrontService(Front):
    def __init__(self, middle: Middle) -> None:
        self.middle = middle

    async def who(self, who: Who) -> Who:
        before = str(current().principal)
        current().principal = who.user  # it has asked the user for a password, say
        if who.address:
            async with connect(Back, who.address, token="s3cret-front") as elsewhere:
                return told(before, *(await elsewhere.who()).seen)
        return told(before, *(await self.middle.who()).seen)
"""
FACES_FILE = """\
[system]
name = "faces"

[services.front]
app = "faces:front"
public = true
token = "env:FRONT"

[services.middle]
app = "faces:middle"
token = "env:MIDDLE"
allow = "front"

[services.back]
app = "faces:back"

[wires]
rpc = "WIRE"
"""


REFUSED = {
    "s3cret-middle": (
        403,
        {
            "code": "permission_denied",
            "message": "faces.v1.Middle/Who was refused: this caller may not call it.",
        },
    ),
    "guess": (
        401,
        {
            "code": "unauthenticated",
            "message": "faces.v1.Middle/Who was refused: the credentials are not valid here.",
        },
    ),
}


@pytest.mark.parametrize("options", [(), ("--in-process",)])
@pytest.mark.parametrize("wire", WIRES)
async def test_a_principal_goes_from_a_public_face_through_the_system_and_no_further(
    tmp_path: Path, wire: str, options: tuple[str, ...]
) -> None:
    (tmp_path / "faces.py").write_text(FACES)
    (tmp_path / "polywire.toml").write_text(FACES_FILE.replace("WIRE", wire))
    secrets = {"FRONT": "s3cret-front", "MIDDLE": "s3cret-middle"}
    async with polywire("up", *options, directory=tmp_path, env=secrets) as running:
        front, middle, back = [await running.address(name) for name in ("front", "middle", "back")]
        pretends = ["-H", "polywire-principal: mallory", "-H", "authorization: Bearer s3cret-front"]
        status, body = await curl(*pretends, f"http://{front}/who?user=ann")
        # Of back, of middle, what front was told from outside, and what it found itself to be.
        assert (status, json.loads(body)["seen"]) == (200, ["None", "middle for ann", "front for ann", "None for ann"])
        status, body = await curl(*pretends, f"http://{front}/who")
        assert json.loads(body)["seen"] == ["None", "middle for None", "front for None", "None for None"]
        # By its address alone back counts as a stranger, and is not told of ann.
        status, body = await curl(*pretends, f"http://{front}/who?user=ann&address={back}")
        assert json.loads(body)["seen"] == ["None", "front for None", "None for ann"]
        # Who may call is said in the code too, and nothing of it outside.
        status, body = await curl(*pretends, f"http://{front}/who?user=eve")
        assert (status, json.loads(body)["error"]["message"][:26]) == (500, "internal error, request id")
        for token in ("s3cret-middle", "guess"):
            given = ["-H", f"authorization: Bearer {token}", "-H", "content-type: application/json"]
            status, body = await curl("-d", "{}", *given, f"http://{middle}/faces.v1.Middle/Who")
            assert (status, json.loads(body)) == REFUSED[token]
        running.interrupt()
        assert await running.ends() == 0
    assert "s3cret" not in "\n".join(running.said)
