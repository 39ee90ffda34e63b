"""grpc.reflection, v1 and v1alpha: which services are here and how their messages look, for tools such as grpcurl."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated

from google.protobuf import descriptor_pb2

from polywire.contract import Contract, Field, Int32, Message, Service, contracts_of, rpc, service_of
from polywire.contract.export import descriptor_set
from polywire.errors import InvalidArgument, NotFound
from polywire.wire.grpc.health import Health

_PACKAGE = "grpc.reflection.v1"


class FileByFilename(Message, package=_PACKAGE, tag="file_by_filename", transparent=True):
    name: str


class FileContainingSymbol(Message, package=_PACKAGE, tag="file_containing_symbol", transparent=True):
    name: str


class ExtensionRequest(Message, package=_PACKAGE, tag="file_containing_extension"):
    containing_type: Annotated[str, Field(number=1)] = ""
    extension_number: Annotated[Int32, Field(number=2)] = 0


class AllExtensionNumbersOfType(Message, package=_PACKAGE, tag="all_extension_numbers_of_type", transparent=True):
    name: str


class ListServices(Message, package=_PACKAGE, tag="list_services", transparent=True):
    anything: str


class ServerReflectionRequest(Message, package=_PACKAGE):
    host: Annotated[str, Field(number=1)] = ""
    message_request: Annotated[
        FileByFilename | FileContainingSymbol | ExtensionRequest | AllExtensionNumbersOfType | ListServices | None,
        Field(numbers=(3, 4, 5, 6, 7)),
    ] = None


class FileDescriptorResponse(Message, package=_PACKAGE, tag="file_descriptor_response"):
    file_descriptor_proto: Annotated[list[bytes], Field(number=1)]


class ExtensionNumberResponse(Message, package=_PACKAGE, tag="all_extension_numbers_response"):
    base_type_name: Annotated[str, Field(number=1)]
    extension_number: Annotated[list[Int32], Field(number=2)]


class ServiceResponse(Message, package=_PACKAGE):
    name: Annotated[str, Field(number=1)]


class ListServiceResponse(Message, package=_PACKAGE, tag="list_services_response"):
    service: Annotated[list[ServiceResponse], Field(number=1)]


class ErrorResponse(Message, package=_PACKAGE, tag="error_response"):
    error_code: Annotated[Int32, Field(number=1)]
    error_message: Annotated[str, Field(number=2)]


_Answer = FileDescriptorResponse | ExtensionNumberResponse | ListServiceResponse | ErrorResponse


class ServerReflectionResponse(Message, package=_PACKAGE):
    valid_host: Annotated[str, Field(number=1)] = ""
    original_request: Annotated[ServerReflectionRequest | None, Field(number=2)] = None
    message_response: Annotated[
        FileDescriptorResponse | ExtensionNumberResponse | ListServiceResponse | ErrorResponse | None,
        Field(numbers=(4, 5, 6, 7)),
    ] = None


class ServerReflection(Contract, package=_PACKAGE):
    """What is served here."""

    @rpc
    def server_reflection_info(
        self, requests: AsyncIterator[ServerReflectionRequest]
    ) -> AsyncIterator[ServerReflectionResponse]:
        """One answer to each question."""
        raise NotImplementedError


class ServerReflectionAlpha(Contract, package="grpc.reflection.v1alpha", name="ServerReflection"):
    """The same under its old name, which many tools still ask for. The bytes are those of v1."""

    @rpc
    def server_reflection_info(
        self, requests: AsyncIterator[ServerReflectionRequest]
    ) -> AsyncIterator[ServerReflectionResponse]:
        """One answer to each question."""
        raise NotImplementedError


class Catalogue:
    """The descriptors of services, found by the names of what they declare. Made at the first question."""

    def __init__(self, services: Iterable[Service]) -> None:
        self._services = tuple(services)
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        self._file_of: dict[str, str] = {}
        self._extensions: dict[str, dict[int, str]] = {}

    @property
    def services(self) -> list[str]:
        return sorted(service.full_name for service in self._services)

    def _read(self) -> None:
        if self._files:
            return
        for name, serialized in descriptor_set(self._services).items():
            file = self._files[name] = descriptor_pb2.FileDescriptorProto.FromString(serialized)
            for symbol in _symbols(file):
                self._file_of[symbol] = name
            for extension in file.extension:
                of_type = self._extensions.setdefault(extension.extendee.removeprefix("."), {})
                of_type[extension.number] = name

    def file(self, name: str) -> list[bytes]:
        """The file called *name* and all that it imports. Raises NotFound."""
        self._read()
        if name not in self._files:
            raise NotFound(f"There is no file {name[:200]!r} here.")
        found: dict[str, bytes] = {}
        waiting = [name]
        while waiting:
            next_name = waiting.pop(0)
            if next_name not in found:
                file = self._files[next_name]
                found[next_name] = file.SerializeToString(deterministic=True)
                waiting.extend(file.dependency)
        return list(found.values())

    def declaring(self, symbol: str) -> list[bytes]:
        """The file that declares a service, method, message or enum, and all that it imports. Raises NotFound."""
        self._read()
        name = self._file_of.get(symbol.removeprefix("."))
        if name is None:
            raise NotFound(f"Nothing here is called {symbol[:200]!r}.")
        return self.file(name)

    def extending(self, message: str, number: int) -> list[bytes]:
        """The file with extension *number* of *message*, and all that it imports. Raises NotFound."""
        self._read()
        name = self._extensions.get(message, {}).get(number)
        if name is None:
            raise NotFound(f"There is no extension {number} of {message[:200]!r} here.")
        return self.file(name)

    def extensions(self, message: str) -> list[int]:
        """The numbers of all extensions of *message*. Raises NotFound."""
        self._read()
        if message not in self._file_of:
            raise NotFound(f"Nothing here is called {message[:200]!r}.")
        return sorted(self._extensions.get(message, ()))

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        try:
            answer = self._answer(request)
        except (NotFound, InvalidArgument) as error:
            answer = ErrorResponse(error_code=error.number, error_message=error.message)
        return ServerReflectionResponse(valid_host=request.host, original_request=request, message_response=answer)

    def _answer(self, request: ServerReflectionRequest) -> _Answer:
        match request.message_request:
            case FileByFilename(name=name):
                return FileDescriptorResponse(file_descriptor_proto=self.file(name))
            case FileContainingSymbol(name=name):
                return FileDescriptorResponse(file_descriptor_proto=self.declaring(name))
            case ExtensionRequest(containing_type=message, extension_number=number):
                return FileDescriptorResponse(file_descriptor_proto=self.extending(message, number))
            case AllExtensionNumbersOfType(name=name):
                return ExtensionNumberResponse(base_type_name=name, extension_number=self.extensions(name))
            case ListServices():
                return ListServiceResponse(service=[ServiceResponse(name=name) for name in self.services])
            case _:
                raise InvalidArgument("The question is missing, or of a kind that is not known here.")


def _symbols(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """The full name of everything that *file* declares."""
    prefix = f"{file.package}." if file.package else ""
    for service in file.service:
        yield prefix + service.name
        for method in service.method:
            yield f"{prefix}{service.name}.{method.name}"
    for enum in file.enum_type:
        yield prefix + enum.name
    for extension in file.extension:
        yield prefix + extension.name
    for message in file.message_type:
        yield from _symbols_in(message, prefix)


def _symbols_in(message: descriptor_pb2.DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield name
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
    for inner in message.nested_type:
        yield from _symbols_in(inner, f"{name}.")


class ReflectionService(ServerReflection):
    """Answers from a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def server_reflection_info(
        self, requests: AsyncIterator[ServerReflectionRequest]
    ) -> AsyncIterator[ServerReflectionResponse]:
        async for request in requests:
            yield self._catalogue.answer(request)


class ReflectionAlphaService(ServerReflectionAlpha):
    """The same as `ReflectionService`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def server_reflection_info(
        self, requests: AsyncIterator[ServerReflectionRequest]
    ) -> AsyncIterator[ServerReflectionResponse]:
        async for request in requests:
            yield self._catalogue.answer(request)


def reflection_services(served: Iterable[object]) -> tuple[ReflectionService, ReflectionAlphaService]:
    """Both versions of reflection for the contracts that *served* implement, for health and for themselves."""
    contracts = [contract for service in served for contract in contracts_of(type(service))]
    contracts += [Health, ServerReflection, ServerReflectionAlpha]
    catalogue = Catalogue(service_of(contract) for contract in contracts)
    return ReflectionService(catalogue), ReflectionAlphaService(catalogue)
