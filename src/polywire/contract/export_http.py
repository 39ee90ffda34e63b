"""google.api.http: the REST routes of an rpc as the option that other languages' tools read."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from polywire.contract.message import Message
from polywire.contract.rest import Route
from polywire.contract.rpc import Rpc, Service
from polywire.contract.schema import Form, schema_of

ANNOTATIONS = "google/api/annotations.proto"
HTTP = "google/api/http.proto"
DESCRIPTOR = descriptor_pb2.DESCRIPTOR.name
HTTP_EXTENSION = 72295728

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.]*)")
_Field = descriptor_pb2.FieldDescriptorProto


def _file(name: str, outer_class: str, *dependencies: str) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name=name, package="google.api", syntax="proto3", dependency=sorted(dependencies)
    )
    # Their own options: generated code in Go and Java has to find the classes where everybody else's code has them.
    file.options.go_package = "google.golang.org/genproto/googleapis/api/annotations;annotations"
    file.options.java_multiple_files = True
    file.options.java_outer_classname = outer_class
    file.options.java_package = "com.google.api"
    file.options.objc_class_prefix = "GAPI"
    return file


def _field(message: descriptor_pb2.DescriptorProto, name: str, number: int, **more: Any) -> None:
    head, *tail = name.split("_")
    message.field.add(
        name=name,
        number=number,
        json_name=head + "".join(part.capitalize() for part in tail),
        **{"type": _Field.TYPE_STRING, "label": _Field.LABEL_OPTIONAL, **more},
    )


def _http_file() -> descriptor_pb2.FileDescriptorProto:
    file = _file(HTTP, "HttpProto")
    rules = {"type": _Field.TYPE_MESSAGE, "label": _Field.LABEL_REPEATED, "type_name": ".google.api.HttpRule"}
    http = file.message_type.add(name="Http")
    _field(http, "rules", 1, **rules)
    _field(http, "fully_decode_reserved_expansion", 2, type=_Field.TYPE_BOOL)
    rule = file.message_type.add(name="HttpRule")
    rule.oneof_decl.add(name="pattern")
    _field(rule, "selector", 1)
    for name, number in (("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 6)):
        _field(rule, name, number, oneof_index=0)
    custom = {"type": _Field.TYPE_MESSAGE, "type_name": ".google.api.CustomHttpPattern"}
    _field(rule, "custom", 8, oneof_index=0, **custom)
    _field(rule, "body", 7)
    _field(rule, "response_body", 12)
    _field(rule, "additional_bindings", 11, **rules)
    pattern = file.message_type.add(name="CustomHttpPattern")
    _field(pattern, "kind", 1)
    _field(pattern, "path", 2)
    return file


def _annotations_file() -> descriptor_pb2.FileDescriptorProto:
    file = _file(ANNOTATIONS, "AnnotationsProto", HTTP, DESCRIPTOR)
    file.extension.add(
        name="http",
        json_name="http",
        number=HTTP_EXTENSION,
        type=_Field.TYPE_MESSAGE,
        type_name=".google.api.HttpRule",
        label=_Field.LABEL_OPTIONAL,
        extendee=".google.protobuf.MethodOptions",
    )
    return file


FILES = {HTTP: _http_file(), ANNOTATIONS: _annotations_file()}
"""The files of googleapis that declare the option, for compilers that do not have them at hand."""

# A pool of our own: the program may import googleapis' generated classes as well, and the two must not meet.
_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(descriptor_pb2.DESCRIPTOR.serialized_pb)
for _made in FILES.values():
    _pool.AddSerializedFile(_made.SerializeToString())
HttpRule: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("google.api.HttpRule"))
_MethodOptions: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("google.protobuf.MethodOptions"))
_http: Any = _pool.FindExtensionByName("google.api.http")


def rule_in(options: descriptor_pb2.MethodOptions) -> Any:
    """The HttpRule of a method, or None."""
    read = _MethodOptions.FromString(options.SerializeToString())
    return read.Extensions[_http] if read.HasExtension(_http) else None


def set_rule(options: descriptor_pb2.MethodOptions, rule: Any) -> None:
    written = _MethodOptions()
    written.Extensions[_http].CopyFrom(rule)
    options.MergeFromString(written.SerializeToString())


def rule_of(rpc: Rpc, service: Service) -> Any:
    """The HttpRule that says what the REST routes of an rpc say, as far as it can; None without routes.

    Fields that come from headers, success statuses and response headers have no place in it.
    """
    rules = [_rule(route, rpc.request, service.prefix) for route in rpc.routes]
    if not rules:
        return None
    rules[0].additional_bindings.extend(rules[1:])
    return rules[0]


def _rule(route: Route, request: type[Message] | None, prefix: str) -> Any:
    rule = HttpRule()
    path = prefix + _PARAMETER.sub(lambda match: "{" + wire_path(request, match[1]), route.path)
    if route.verb.lower() in ("get", "put", "post", "delete", "patch"):
        setattr(rule, route.verb.lower(), path)
    else:
        rule.custom.kind = route.verb
        rule.custom.path = path
    if route.body is not None:
        rule.body = route.body if route.body == "*" else wire_path(request, route.body)
    return rule


def wire_path(message: type[Message] | None, path: str) -> str:
    """A dotted path of fields with the names that they have on the wire; what is no field stays as it is."""
    names = []
    for part in path.split("."):
        fields = schema_of(message).fields if message is not None else ()
        message = None
        for field in fields:
            if part in (field.attribute, field.name):
                part = field.name
                if field.form is Form.ONE and field.value is not None and field.value.is_message:
                    message = field.value.python
                break
        names.append(part)
    return ".".join(names)
