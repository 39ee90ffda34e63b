"""Importing polywire is quick and brings along nothing that was not asked for."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"asyncio", "ssl", "msgspec", "google.protobuf", "httptools", "jh2", "uvloop", "click", "sqlite3"}
OPTIONAL = {"grpc", "grpc_tools", "aiohttp", "connectrpc", "h2", "fastapi", "uvicorn", "pydantic", "cryptography"}


def loaded_by(statement: str) -> set[str]:
    """The names of HEAVY and OPTIONAL that are loaded after *statement* in a fresh interpreter."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout)) & (HEAVY | OPTIONAL)


def test_the_package_alone_loads_no_library() -> None:
    assert loaded_by("import polywire") == set()


def test_a_contract_needs_messages_and_no_server_library() -> None:
    loaded = loaded_by("from polywire import Contract, Message, get, rpc")
    assert loaded & ({"httptools", "jh2", "uvloop", "click", "ssl"} | OPTIONAL) == set()


def test_a_running_system_needs_no_optional_dependency() -> None:
    assert loaded_by("from polywire import App, Server, connect, serve") & OPTIONAL == set()
