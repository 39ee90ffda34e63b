"""A compiled `.proto` file as the Python module that declares the same: enums, messages and contracts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf import descriptor_pb2

from polywire.contract import wellknown
from polywire.contract.error_comments import ErrorComment, read_error_comment
from polywire.contract.export_http import rule_in
from polywire.contract.export_messages import TYPES
from polywire.contract.export_text import has_json_name
from polywire.contract.protofile.layout import Group, Union, docstring, literal, tuple_of
from polywire.contract.protofile.model import Entry, FieldProto, Model, entries_of, is_entry
from polywire.contract.protofile.naming import ClassNames, field_names, member_names, method_names
from polywire.contract.protofile.routes import routes_of
from polywire.contract.rpc import wire_name
from polywire.contract.schema import snake, upper_snake
from polywire.errors import RESERVED_BY_ERRORS

EMPTY = "google.protobuf.Empty"
NULL_VALUE = "google.protobuf.NullValue"
_SPELLED = {number: name for name, number in TYPES.items()}
_PLAIN = {"string": "str", "bool": "bool", "bytes": "bytes", "int64": "int", "double": "float"}
_ALIASES = {
    "int32": "Int32",
    "uint32": "UInt32",
    "uint64": "UInt64",
    "sint32": "SInt32",
    "sint64": "SInt64",
    "fixed32": "Fixed32",
    "fixed64": "Fixed64",
    "sfixed32": "SFixed32",
    "sfixed64": "SFixed64",
    "float": "Float32",
}
_TIMES = {"google.protobuf.Timestamp": "datetime", "google.protobuf.Duration": "timedelta"}
_ZEROS = {"string": '""', "bool": "False", "bytes": 'b""', "double": "0.0", "float": "0.0"}
_MAX_NUMBER = 2**29


def python_module(compiled: descriptor_pb2.FileDescriptorSet, files: Sequence[str]) -> str:
    """The text of a module with everything that *files* declare, and what they use of other files.

    *compiled* has them and all their imports, with source info for the comments. The same input gives the same text.
    Raises ContractError for proto2 and editions.
    """
    return _Module(Model(compiled, files), files).text()


class _Module:
    def __init__(self, model: Model, files: Sequence[str]) -> None:
        self._files = files
        self._enums = model.of(descriptor_pb2.EnumDescriptorProto)
        self._messages = model.of(descriptor_pb2.DescriptorProto)
        self._services = model.of(descriptor_pb2.ServiceDescriptorProto)
        self._entries = model.entries
        self._imports: dict[str, set[str]] = {}
        self._names: dict[str, str] = {}
        self._zeros: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._ignored: set[str] = set()
        self._errors = dict(self._find_errors())
        self._raises = self._find_raises()
        self._classes = ClassNames(self._well_known_in_use())
        self._give_names()

    def _well_known_in_use(self) -> set[str]:
        """The names that will be imported, so that no class of the file gets them."""
        used = {"NullValue", *(comment.canonical.__name__ for comment in self._errors.values())}
        for entry in (*self._messages, *self._services):
            used.update(name.rpartition(".")[2] for name in _type_names(entry) if name.removeprefix(".") in _WELL_KNOWN)
        return used

    def _find_errors(self) -> Iterator[tuple[str, ErrorComment]]:
        """The messages whose comment says that they are errors, and that are nothing else besides."""
        elsewhere = {
            name.removeprefix(".") for entry in (*self._messages, *self._services) for name in _type_names(entry)
        }
        for entry in self._messages:
            _, comment = read_error_comment(entry.comments.text(*entry.path))
            if comment is not None and entry.full_name not in elsewhere:
                yield entry.full_name, comment

    def _find_raises(self) -> dict[str, list[str]]:
        """The errors of each rpc, by its full name, `shop.v1.Orders.Place`."""
        found: dict[str, list[str]] = {}
        for full_name, comment in self._errors.items():
            package = self._entries[full_name].file.package
            for name in comment.raised_by:
                relative = f"{package}.{name}" if package and name.count(".") == 1 else name
                found.setdefault(relative, []).append(full_name)
        return found

    def _give_names(self) -> None:
        entries = [*self._messages, *self._services, *self._enums]
        for entry in sorted(entries, key=lambda entry: len(entry.names)):
            self._names[entry.full_name] = self._classes.take(entry.file.package, entry.names)
        for entry in self._enums:
            assert isinstance(entry.described, descriptor_pb2.EnumDescriptorProto)  # noqa: S101 - selected by type
            names = member_names(entry.described.name, [value.name for value in entry.described.value])
            zero = next(value.name for value in entry.described.value if value.number == 0)
            self._zeros[entry.full_name] = f"{self._names[entry.full_name]}.{names[zero]}"
        for entry in self._messages:
            for members in _oneofs(entry).values():
                for member in members:
                    if self._is_direct(member, members):
                        full_name = member.type_name.removeprefix(".")
                        self._tags[full_name] = snake(self._names[full_name])

    def _is_direct(self, member: FieldProto, members: Sequence[FieldProto]) -> bool:
        """Whether a member of a oneof can stand in the union by itself, told apart by its class's own tag."""
        full_name = member.type_name.removeprefix(".")
        if member.type != FieldProto.TYPE_MESSAGE or full_name not in self._names or len(members) < 2:
            return False
        if Counter(other.type_name for other in members)[member.type_name] > 1:
            return False
        described = self._entries[full_name].described
        assert isinstance(described, descriptor_pb2.DescriptorProto)  # noqa: S101 - a field's type is a message
        if any(field.name == "type" for field in described.field):
            return False  # JSON tells the members of a union apart by a key of that name
        tag = snake(self._names[full_name])
        return all(tag != other.name or other is member for other in members)

    def text(self) -> str:
        blocks = [
            *(list(self._enum(entry)) for entry in self._enums),
            *(block for entry in self._messages for block in self._message(entry)),
            *(list(self._service(entry)) for entry in self._services),
        ]
        body = [line for block in blocks for line in ("", "", *block)]
        files = ", ".join(self._files)
        head = [f'"""What {files} declares."""', ""]
        if any(len(line) > 88 for line in body):
            self._ignored.add("E501")
        if self._ignored:
            head = [f"# ruff: noqa: {', '.join(sorted(self._ignored))}", *head]
        return "\n".join([*head, *self._import_lines(), *body]) + "\n"

    def _import(self, module: str, name: str) -> str:
        self._imports.setdefault(module, set()).add(name)
        return name

    def _import_lines(self) -> Iterator[str]:
        yield "from __future__ import annotations"
        standard = [module for module in self._imports if not module.startswith("polywire")]
        if standard:
            yield ""
        if "enum" in standard:
            yield "import enum"
        for module in sorted(set(standard) - {"enum"}):
            yield from self._from(module)
        ours = sorted(set(self._imports) - set(standard))
        if ours:
            yield ""
        for module in ours:
            yield from self._from(module)

    def _from(self, module: str) -> list[str]:
        names = sorted(self._imports[module], key=lambda name: (name.islower(), name))
        flat = f"from {module} import {', '.join(names)}"
        return [flat] if len(flat) <= 88 else Group("(", names, ")").lines(before=f"from {module} import ")

    # Enums

    def _enum(self, entry: Entry) -> Iterator[str]:
        enum = entry.described
        assert isinstance(enum, descriptor_pb2.EnumDescriptorProto)  # noqa: S101 - selected by type
        self._import("enum", "enum")
        form = self._import("polywire.contract", "enum_form")
        python = self._names[entry.full_name]
        names = member_names(enum.name, [value.name for value in enum.value])
        prefix = upper_snake(enum.name)
        given = [
            f"{literal(attribute)}: {literal(name)}"
            for name, attribute in names.items()
            if name != f"{prefix}_{attribute.upper()}"
        ]
        arguments: list[str | Group] = [f"package={literal(entry.file.package)}"]
        if entry.name != python:
            arguments.append(f"name={literal(entry.name)}")
        if given:
            arguments.append(Group("names={", given, "}"))
        yield from Group(f"@{form}(", arguments, ")").lines()
        yield from _class(python, ["enum.IntEnum"])
        doc = docstring(entry.comments.text(*entry.path), 4)
        yield from doc
        if doc:
            yield ""
        for index, value in enumerate(enum.value):
            for line in entry.comments.lines(*entry.path, 2, index):
                yield f"    # {line}".rstrip()
            yield f"    {names[value.name]} = {value.number}"

    # Messages

    def _message(self, entry: Entry) -> Iterator[list[str]]:
        message = entry.described
        assert isinstance(message, descriptor_pb2.DescriptorProto)  # noqa: S101 - selected by type
        python = self._names[entry.full_name]
        error = self._errors.get(entry.full_name)
        names = field_names(_attribute_sources(message), self._classes, RESERVED_BY_ERRORS if error else ())
        fields: list[str] = []
        wrappers: list[list[str]] = []
        begun: set[int] = set()
        for index, field in enumerate(message.field):
            if field.HasField("oneof_index") and not field.proto3_optional:
                if field.oneof_index not in begun:
                    begun.add(field.oneof_index)
                    name = message.oneof_decl[field.oneof_index].name
                    fields += self._oneof(entry, field.oneof_index, names[name], wrappers)
            else:
                doc = entry.comments.paragraphs(*entry.path, 2, index)
                fields += self._field(message, field, names[field.name], doc)
        yield from wrappers
        base, doc = self._base_and_doc(entry, error)
        keywords: list[str | Group] = [base, f"package={literal(entry.file.package)}"]
        if entry.name != python:
            keywords.append(f"name={literal(entry.name)}")
        reserved = _reserved(message)
        if reserved:
            keywords.append(tuple_of("reserved=", reserved))
        if error is not None and error.http_status is not None:
            keywords.append(f"http_status={error.http_status}")
        if entry.full_name in self._tags:
            keywords.append(f"tag={literal(self._tags[entry.full_name])}")
        yield [*_class(python, keywords), *_body(docstring(doc, 4), fields)]

    def _base_and_doc(self, entry: Entry, error: ErrorComment | None) -> tuple[str, str]:
        text = entry.comments.text(*entry.path)
        if error is None:
            return self._import("polywire.contract", "Message"), text
        return self._import("polywire.errors", error.canonical.__name__), read_error_comment(text)[0]

    def _field(self, message: descriptor_pb2.DescriptorProto, field: FieldProto, attribute: str, doc: str) -> list[str]:
        options = [f"number={field.number}"]
        if attribute != field.name:
            options.append(f"name={literal(field.name)}")
        if has_json_name(field):
            options.append(f"json_name={literal(field.json_name)}")
        if doc:
            options.append(f"description={literal(doc)}")
        hint, default = self._hint(message, field)
        return self._annotated(attribute, hint, options, default)

    def _annotated(self, attribute: str, hint: str | Group, options: Sequence[str | Group], default: str) -> list[str]:
        annotated = self._import("typing", "Annotated")
        field = Group(f"{self._import('polywire.contract', 'Field')}(", options, ")")
        return Group(f"{annotated}[", [hint, field], "]").lines(4, f"{attribute}: ", f" = {default}")

    def _hint(self, message: descriptor_pb2.DescriptorProto, field: FieldProto) -> tuple[str, str]:
        if is_entry(message, field):
            entry = entries_of(message)[field.type_name.rpartition(".")[2]]
            self._ignored.add("RUF012")
            return f"dict[{self._type(entry.field[0])}, {self._type(entry.field[1])}]", "{}"
        if field.label == FieldProto.LABEL_REPEATED:
            self._ignored.add("RUF012")
            return f"list[{self._type(field)}]", "[]"
        if field.proto3_optional or field.type == FieldProto.TYPE_MESSAGE:
            return f"{self._type(field)} | None", "None"
        return self._type(field), self._zero(field)

    def _type(self, field: FieldProto) -> str:
        if field.type_name:
            return self._named(field.type_name)
        spelled = _SPELLED[field.type]
        return _PLAIN.get(spelled) or self._import("polywire.contract", _ALIASES[spelled])

    def _named(self, type_name: str) -> str:
        full_name = type_name.removeprefix(".")
        if full_name in _TIMES:
            return self._import("datetime", _TIMES[full_name])
        return self._class_of(full_name)

    def _class_of(self, full_name: str) -> str:
        if full_name in _WELL_KNOWN:
            return self._import("polywire.contract.wellknown", full_name.rpartition(".")[2])
        return self._names[full_name]

    def _zero(self, field: FieldProto) -> str:
        if field.type == FieldProto.TYPE_ENUM:
            full_name = field.type_name.removeprefix(".")
            return self._zeros.get(full_name) or f"{self._named(full_name)}.NULL_VALUE"
        return _ZEROS.get(_SPELLED[field.type], "0")

    def _oneof(self, entry: Entry, oneof: int, attribute: str, wrappers: list[list[str]]) -> list[str]:
        message = entry.described
        assert isinstance(message, descriptor_pb2.DescriptorProto)  # noqa: S101 - selected by type
        name = message.oneof_decl[oneof].name
        members = _oneofs(entry)[oneof]
        direct = {member.name: self._is_direct(member, members) for member in members}
        classes, derived = [], []
        for member in members:
            if direct[member.name]:
                classes.append(self._names[member.type_name.removeprefix(".")])
                derived.append(self._tags[member.type_name.removeprefix(".")])
                continue
            python = self._classes.take_member(self._names[entry.full_name], name, member.name)
            self._import("polywire.contract", "Message")
            keywords = ["Message", "transparent=True", f"tag={literal(member.name)}"]
            doc = docstring(entry.comments.text(*entry.path, 2, list(message.field).index(member)), 4)
            wrappers.append([*_class(python, keywords), *_body(doc, [f"    value: {self._type(member)}"])])
            classes.append(python)
            derived.append(snake(member.name))
        options: list[str | Group] = [tuple_of("numbers=", [str(member.number) for member in members])]
        wire = [member.name for member in members]
        if wire != derived:
            options.append(tuple_of("names=", [literal(member) for member in wire]))
        if attribute != name:
            options.append(f"name={literal(name)}")
        if any(map(has_json_name, members)):
            options.append(tuple_of("json_names=", [literal(member.json_name) for member in members]))
        description = entry.comments.paragraphs(*entry.path, 8, oneof)
        if description:
            options.append(f"description={literal(description)}")
        return self._annotated(attribute, Union([*classes, "None"]), options, "None")

    # Services

    def _service(self, entry: Entry) -> Iterator[str]:
        service = entry.described
        assert isinstance(service, descriptor_pb2.ServiceDescriptorProto)  # noqa: S101 - selected by type
        base = self._import("polywire.contract", "Contract")
        python = self._names[entry.full_name]
        keywords = [base, f"package={literal(entry.file.package)}"]
        if entry.name != python:
            keywords.append(f"name={literal(entry.name)}")
        yield from _class(python, keywords)
        doc = docstring(entry.comments.text(*entry.path), 4)
        yield from doc
        routes = [routes_of(rule_in(method.options), method.client_streaming) for method in service.method]
        verbs = {verb for found in routes for verb in found.verbs}
        attributes = method_names([method.name for method in service.method], self._classes, verbs)
        for verb in verbs:
            self._import("polywire.contract", verb)
        for index, method in enumerate(service.method):
            if index or doc:
                yield ""
            comment = docstring(entry.comments.text(*entry.path, 2, index), 8)
            attribute = attributes[method.name]
            yield from (f"    # {line}" for line in routes[index].left_out)
            raises = [self._names[name] for name in self._raises.get(f"{entry.full_name}.{method.name}", ())]
            yield from self._decorator(method, attribute, routes[index].written, raises)
            yield from self._signature(method, attribute)
            yield from comment
            yield "        raise NotImplementedError"
        if not doc and not service.method:
            yield "    pass"

    def _decorator(
        self, method: descriptor_pb2.MethodDescriptorProto, attribute: str, routes: Iterable[Group], raises: list[str]
    ) -> list[str]:
        rpc = self._import("polywire.contract", "rpc")
        arguments: list[str | Group] = list(routes)
        if method.options.idempotency_level != method.options.IDEMPOTENCY_UNKNOWN:
            arguments.append("idempotent=True")
        if wire_name(attribute) != method.name:
            arguments.append(f"name={literal(method.name)}")
        if raises:
            arguments.append(tuple_of("raises=", raises))
        return Group(f"@{rpc}(", arguments, ")").lines(4) if arguments else [f"    @{rpc}"]

    def _signature(self, method: descriptor_pb2.MethodDescriptorProto, attribute: str) -> list[str]:
        request = self._argument(method.input_type, streamed=method.client_streaming)
        response = self._argument(method.output_type, streamed=method.server_streaming)
        arguments = ["self"]
        if request is not None:
            arguments.append(f"{'requests' if method.client_streaming else 'request'}: {request}")
        word = "def" if method.server_streaming else "async def"
        return Group(f"{word} {attribute}(", arguments, ")").lines(4, after=f" -> {response}:")

    def _argument(self, type_name: str, *, streamed: bool) -> str | None:
        full_name = type_name.removeprefix(".")
        if full_name == EMPTY and not streamed:
            return None
        python = self._class_of(full_name)
        return f"{self._import('collections.abc', 'AsyncIterator')}[{python}]" if streamed else python


_WELL_KNOWN = frozenset({*wellknown.MESSAGES, NULL_VALUE})


def _class(name: str, keywords: Sequence[str | Group]) -> list[str]:
    return Group("(", keywords, ")").lines(before=f"class {name}", after=":")


def _body(doc: list[str], fields: list[str]) -> list[str]:
    if not doc and not fields:
        return ["    pass"]
    return [*doc, "", *fields] if doc and fields else [*doc, *fields]


def _oneofs(entry: Entry) -> dict[int, list[FieldProto]]:
    """The members of each oneof that the file has written as such."""
    found: dict[int, list[FieldProto]] = {}
    assert isinstance(entry.described, descriptor_pb2.DescriptorProto)  # noqa: S101 - asked of messages only
    for field in entry.described.field:
        if field.HasField("oneof_index") and not field.proto3_optional:
            found.setdefault(field.oneof_index, []).append(field)
    return found


def _attribute_sources(message: descriptor_pb2.DescriptorProto) -> list[str]:
    """The names that become attributes: those of fields outside of oneofs, and those of oneofs."""
    found: dict[str, None] = {}
    for field in message.field:
        inside = field.HasField("oneof_index") and not field.proto3_optional
        found[message.oneof_decl[field.oneof_index].name if inside else field.name] = None
    return list(found)


def _type_names(entry: Entry) -> Iterator[str]:
    described = entry.described
    if isinstance(described, descriptor_pb2.DescriptorProto):
        for inner in (described, *described.nested_type):
            yield from (field.type_name for field in inner.field if field.type_name)
    elif isinstance(described, descriptor_pb2.ServiceDescriptorProto):
        for method in described.method:
            yield from (method.input_type, method.output_type)


def _reserved(message: descriptor_pb2.DescriptorProto) -> list[str]:
    written = []
    for entry in message.reserved_range:
        single = entry.end == entry.start + 1
        written.append(str(entry.start) if single else f"range({entry.start}, {entry.end})")
    return written + [literal(name) for name in message.reserved_name]
