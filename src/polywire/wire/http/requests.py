"""Puts a request message together from the path, the query, the headers and the body of a REST request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from polywire.codec import Malformed, codec_for
from polywire.contract import Message, Route, Rpc
from polywire.contract.schema import FieldSchema, Form, schema_of
from polywire.errors import ContractError, InvalidArgument
from polywire.net.stream import Field
from polywire.wire.http.routing import BadPath, Template, Variable, decode_rest, decode_text
from polywire.wire.http.values import Binding, binding_for, is_scalar, shown

MAX_DEPTH = 5
"""Names between the dots of a query key."""

_encode = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder().decode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode

Parts = dict[str, Any]
"""What JSON would have for the fields bound so far, by wire name."""


class RequestReader:
    """The rules of one route, worked out once; `parts` and `message` apply them.

    * Fields named in the path come from there. *body* `"*"` takes all other fields from the body, a field's name that
      field; what is left comes from the query.
    * A list of scalars is its key repeated; a field of a nested message is named with dots (`filter.state=paid`); maps,
      unions and lists of messages are given as JSON. Unknown keys are ignored, as unknown fields are; a key given
      twice for a single value is refused. A list that is not there is empty.
    * A path parameter wins over a field of the same name in the body.
    """

    def __init__(self, rpc: Rpc, route: Route) -> None:
        self.template = Template(rpc.prefix + route.path)
        self.where = f"{rpc.full_name}: {route.verb} {self.template.text}"
        self._request = rpc.request
        self.decode: Callable[[bytes], Any] = codec_for(rpc.request, "json").decode
        fields = {} if rpc.request is None else _fields_by_name(rpc.request)
        self.variables = [(variable, self._path_binding(fields, variable)) for variable in self.template.variables]
        self.body = self._body_field(fields, route)
        """`"*"`, the wire name of a field, or None."""
        self.headers = [
            (header.lower().encode(), self._binding(fields, name, "its headers"))
            for name, header in route.headers.items()
        ]
        taken = {binding.name for _, binding in [*self.variables, *self.headers]}
        self._query: dict[str, Binding] = {}
        self._empty_lists: tuple[str, ...] = ()
        if self.body != "*" and rpc.request is not None:
            self._query = _query_bindings(rpc.request, taken | {self.body or ""})
            self._empty_lists = tuple(
                field.name
                for field in schema_of(rpc.request).fields
                if field.form is Form.LIST and field.required and field.name in self._query
            )
        self._flat = all(len(binding.path) == 1 for _, binding in [*self.variables, *self.headers])
        self.plain_body = self.body == "*" and not self.variables and not self.headers
        """The body is the message, as it is."""

    @property
    def reads_headers(self) -> bool:
        return bool(self.headers)

    def _refuse(self, what: str) -> ContractError:
        return ContractError(f"{self.where} cannot be served: {what}")

    def _binding(self, fields: dict[str, FieldSchema], name: str, place: str) -> Binding:
        outer: tuple[str, ...] = ()
        first, *rest = name.split(".")
        field = fields.get(first)
        for inner in rest:
            if field is None or field.form is not Form.ONE or field.value is None or not field.value.is_message:
                raise self._no_field(name, place, fields)
            outer = (*outer, field.name)
            field = _fields_by_name(field.value.python).get(inner)
        if field is None:
            raise self._no_field(name, place, fields)
        return binding_for(field, outer)

    def _no_field(self, name: str, place: str, fields: dict[str, FieldSchema]) -> ContractError:
        if self._request is None:
            return self._refuse(f"{place} names {name!r}, but the method takes no message.")
        known = ", ".join(dict.fromkeys(field.name for field in fields.values())) or "none"
        return self._refuse(
            f"{place} names {name!r}, which {self._request.__qualname__} does not have. Its fields: {known}."
        )

    def _path_binding(self, fields: dict[str, FieldSchema], variable: Variable) -> Binding:
        binding = self._binding(fields, variable.field, "its path")
        if binding.many or binding.read.__name__ == "_json":
            raise self._refuse(f"{variable.field!r} in its path is no single value; only scalars can be there.")
        return binding

    def _body_field(self, fields: dict[str, FieldSchema], route: Route) -> str | None:
        if route.body is None or route.body == "*":
            return route.body
        if route.body not in fields:
            raise self._no_field(route.body, "its body", fields)
        return fields[route.body].name

    # At the request.

    def parts(self, path: str, segments: Sequence[str], query: str, fields: Iterable[Field]) -> Parts:
        """What path, query and headers say. Raises InvalidArgument, and Malformed for what cannot be read at all."""
        parts: Parts = {}
        if self._query:
            self._read_query(query, parts)
        for raw_name, binding in self.headers:
            for name, value in fields:
                if name == raw_name:
                    self._put(parts, binding, value.decode("latin-1"))
        for variable, binding in self.variables:
            _set(parts, binding.path, binding.read(binding.name, self._segment_text(variable, path, segments)))
        return parts

    def _segment_text(self, variable: Variable, path: str, segments: Sequence[str]) -> str:
        if variable.single:
            return segments[variable.start]
        if variable.end is None:
            if self.template.verb:
                path = path.rpartition(":")[0]
            return decode_rest(path, variable.start)
        return "/".join(segments[variable.start : variable.end])

    def _read_query(self, query: str, parts: Parts) -> None:
        bindings = self._query
        for pair in query.split("&") if query else ():
            key, _, text = pair.partition("=")
            if "%" in key or "+" in key:
                key = _decoded(key)
            binding = bindings.get(key)
            if binding is not None:
                self._put(parts, binding, _decoded(text) if "%" in text or "+" in text else text)
        for name in self._empty_lists:
            parts.setdefault(name, [])

    @staticmethod
    def _put(parts: Parts, binding: Binding, text: str) -> None:
        value = binding.read(binding.name, text)
        if binding.many:
            _append(parts, binding.path, value)
        elif _set(parts, binding.path, value):
            raise InvalidArgument(
                f"{binding.name}: given more than once, the last time as {shown(text)}, but it is a single value.",
                field=binding.name,
            )

    def encoded(self, parts: Parts) -> bytes:
        """The message's JSON where there is no body."""
        return _encode(parts)

    def message(self, parts: Parts, body: bytes) -> Any:
        """The message. Raises InvalidArgument where it violates its contract, Malformed for a body that is no JSON."""
        if self.body is None:
            return self.decode(_encode(parts))
        if self.body != "*":
            if body:
                self._refuse_malformed(body)
                parts = {**parts, self.body: msgspec.Raw(body)}
            return self.decode(_encode(parts))
        if not body:
            return self.decode(_encode(parts))
        if not parts:
            return self.decode(body)
        return self.decode(self._spliced(parts, body) if self._flat else self._merged(parts, body))

    def _refuse_malformed(self, body: bytes) -> None:
        try:
            _check_json(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._malformed(error) from None

    def _malformed(self, error: Exception) -> Malformed:
        why = str(error).removeprefix("JSON is malformed: ")
        if isinstance(error, RecursionError):
            why = "nested too deeply"
        return Malformed(f"The body of {self.where} is not JSON: {why}.")

    @staticmethod
    def _spliced(parts: Parts, body: bytes) -> bytes:
        """*body* with *parts* as its last members, which win over earlier ones of the same name.

        They are its first members too, so that a body that ends too early is not told to lack them. Whatever the body
        is, the result is well-formed only if the body was an object.
        """
        whole = body.strip(b" \t\r\n")
        if whole[:1] != b"{" or whole[-1:] != b"}":
            return body
        more = _encode(parts)
        inside = whole[1:-1].strip(b" \t\r\n")
        return b"%b,%b,%b" % (more[:-1], inside, more[1:]) if inside else more

    def _merged(self, parts: Parts, body: bytes) -> bytes:
        try:
            document = _parse(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._malformed(error) from None
        if not isinstance(document, dict):
            return body
        _merge(document, parts)
        return _encode(document)


def _fields_by_name(message: type[Message]) -> dict[str, FieldSchema]:
    """By Python name, and by wire name, which wins."""
    fields = schema_of(message).fields
    return {**{field.attribute: field for field in fields}, **{field.name: field for field in fields}}


def _query_bindings(
    message: type[Message], taken: set[str], outer: tuple[str, ...] = (), seen: tuple[type[Message], ...] = ()
) -> dict[str, Binding]:
    found: dict[str, Binding] = {}
    for field in schema_of(message).fields:
        binding = binding_for(field, outer)
        if binding.name in taken:
            continue
        found[binding.name] = binding
        if field.form is Form.ONE and not is_scalar(field) and field.value is not None:
            inner = field.value.python
            if inner not in seen and len(outer) + 1 < MAX_DEPTH:
                found.update(_query_bindings(inner, taken, binding.path, (*seen, message)))
    return found


def _decoded(text: str) -> str:
    try:
        return decode_text(text.replace("+", " "))
    except BadPath as error:
        raise Malformed(f"The query cannot be read: {error}.") from None


def _holder(parts: Parts, path: tuple[str, ...]) -> Parts:
    for name in path[:-1]:
        inner = parts.setdefault(name, {})
        if not isinstance(inner, dict):
            dotted = ".".join(path)
            raise InvalidArgument(f"{dotted}: {name} is given as a whole as well; give one of them.", field=dotted)
        parts = inner
    return parts


def _set(parts: Parts, path: tuple[str, ...], value: Any) -> bool:
    """True where something was there already."""
    holder = _holder(parts, path)
    there = path[-1] in holder
    holder[path[-1]] = value
    return there


def _append(parts: Parts, path: tuple[str, ...], value: Any) -> None:
    holder = _holder(parts, path)
    holder.setdefault(path[-1], []).append(value)


def _merge(document: dict[str, Any], parts: Parts) -> None:
    for name, value in parts.items():
        inner = document.get(name)
        if isinstance(value, dict) and isinstance(inner, dict):
            _merge(inner, value)
        else:
            document[name] = value
