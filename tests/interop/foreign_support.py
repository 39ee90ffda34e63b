"""`.proto` files of others: our module imported from one, and what grpcio-tools generates from the same file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from polywire import App, serve
from polywire.cli.protoc import compile_protos
from polywire.contract.protofile import python_module

PROTOS = Path(__file__).parent.parent / "contract" / "protos"


@dataclass(frozen=True)
class Foreign:
    """One file, seen from both sides."""

    ours: Any
    """The module that `polywire contract import` writes."""
    messages: Any
    """The generated messages."""
    stubs: Any
    """The generated stubs and servicers."""


@cache
def foreign(sample: str) -> Foreign:
    """The sample `routeguide`, imported and generated."""
    directory = Path(tempfile.mkdtemp(prefix="polywire-foreign-"))
    source = PROTOS / f"{sample}.proto"
    path = directory / f"imported_{sample}.py"
    path.write_text(python_module(*compile_protos([source], [PROTOS])))
    protoc: Any = importlib.import_module("grpc_tools.protoc")
    googleapis = Path(next(iter(importlib.import_module("google.api").__path__))).parent.parent
    places = [PROTOS, googleapis, Path(protoc.__file__).parent / "_proto"]
    arguments = [*(f"-I{place}" for place in places), f"--python_out={directory}", f"--grpc_python_out={directory}"]
    shared = ["shared/money.proto"] if "shared/money.proto" in source.read_text() else []
    assert protoc.main(["protoc", *arguments, source.name, *shared]) == 0
    sys.path.insert(0, str(directory))
    try:
        return Foreign(
            _load(path), importlib.import_module(f"{sample}_pb2"), importlib.import_module(f"{sample}_pb2_grpc")
        )
    finally:
        sys.path.remove(str(directory))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def implemented(contract: Any, **handlers: Callable[..., Any]) -> App:
    """An app that serves *contract* with these functions as its methods."""
    app = App("foreign")
    app.service(type(f"{contract.__name__}Service", (contract,), {"__module__": __name__, **handlers}))
    return app


@asynccontextmanager
async def grpcio_channel(app: App) -> AsyncIterator[Any]:
    """A channel of grpcio to the app, served."""
    async with serve(app, "127.0.0.1:0") as address, grpc.aio.insecure_channel(address) as channel:
        yield channel
