"""Messages: typed, validated values that travel."""

from __future__ import annotations

import ast
import re
import sys
import types
import typing
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

import msgspec

from polywire.contract.fields import FieldOptions
from polywire.errors import ContractError

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")
PACKAGE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class Declaration:
    """What a Message's class statement says beside its fields, and what was derived from the class since."""

    __slots__ = (
        "annotations", "cache", "error", "event", "name", "namespace", "package", "reserved", "tag", "transparent",
    )  # fmt: skip

    def __init__(
        self,
        *,
        name: str,
        package: str | None,
        reserved: tuple[int | str | range, ...],
        transparent: bool,
        namespace: dict[str, Any],
        annotations: dict[str, Any],
    ) -> None:
        self.annotations = annotations
        """As they were written; the class's own are rewritten for msgspec when its schema is read."""
        self.name = name
        """On the wire; dotted where the message is nested in another."""
        self.package = package
        """As declared, or as assigned at start; None until then."""
        self.reserved = reserved
        self.transparent = transparent
        self.namespace = namespace
        """The local names where the class stands, for annotations that name something local."""
        self.event: Any = None
        """What `polywire.contract.event` knows of an event."""
        self.error: Any = None
        """The class whose fields it carries, of an error's detail (`polywire.contract.failures`)."""
        self.cache: dict[Any, Any] = {}
        """Schema and codecs, which live as long as the class."""


class _Annotations(dict[str, Any]):
    """The annotations of a message until msgspec asks for them, which it does once, when it first meets the class.

    By then our limits have to stand in them in its own words: whoever decodes with msgspec itself, before any codec was
    made, would otherwise switch the limits off for good. Reading the schema replaces this by a plain dict. Bounds of
    unsigned 64 bits, floats of 32 bits, decimals and timestamps are beyond msgspec; the codecs alone check those.
    """

    __slots__ = ("_owner",)

    def __init__(self, owner: Any, written: dict[str, Any]) -> None:
        super().__init__(written)
        self._owner: type[Message] = owner

    def __iter__(self) -> Iterator[str]:
        return iter(self._told())

    def items(self) -> Any:
        return self._told().items()

    def _told(self) -> dict[str, Any]:
        from polywire.contract.schema import schema_of  # it stands on this module

        schema_of(self._owner)
        return self._owner.__annotations__


_by_name: dict[str, weakref.WeakSet[Any]] = {}
"""All messages by their own name, for finding the class of a type URL."""


def _names_around(body: dict[str, Any]) -> dict[str, Any]:
    """What is local where a class stands in a function; nothing for a class of a module."""
    parts = body.get("__qualname__", "").split(".")
    if "<locals>" not in parts:
        return {}
    found: dict[str, Any] = {}
    for depth in range(len(parts) - parts.count("<locals>") - 1):
        for key, value in sys._getframe(2 + depth).f_locals.items():
            # Only what an annotation can name: keeping every local alive would be a leak.
            if isinstance(value, (type, types.GenericAlias, types.UnionType)) or typing.get_origin(value) is not None:
                found.setdefault(key, value)
    return found


def _names_given(class_name: str, body: dict[str, Any], namespace: dict[str, Any]) -> dict[str, str]:
    """The wire names in `Field(name=...)`, which msgspec wants when the class is made, before all types exist."""
    names = {}
    for field, hint in body.get("__annotations__", {}).items():
        for options in _options_in(hint, body.get("__module__", ""), namespace):
            if options.name is not None:
                if not _FIELD_NAME.match(options.name):
                    raise ContractError(
                        f"{class_name}.{field}: name={options.name!r} is no field name on the wire: letters, digits "
                        "and underscores, not beginning with a digit."
                    )
                names[field] = options.name
    return names


def _options_in(hint: Any, module: str, namespace: dict[str, Any]) -> list[FieldOptions]:
    if not isinstance(hint, str):
        return [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, FieldOptions)]
    if "name" not in hint:
        return []
    tree = ast.parse(hint, mode="eval").body
    if not isinstance(tree, ast.Subscript) or not isinstance(tree.slice, ast.Tuple):
        return []
    names = {**vars(sys.modules[module]), **namespace} if module in sys.modules else namespace
    found = []
    for part in tree.slice.elts[1:]:
        if isinstance(part, ast.Call):
            # The text stands in the user's own class statement, and Python would evaluate it there all the same.
            value = eval(compile(ast.Expression(part), f"<{module}>", "eval"), names)  # noqa: S307 - as the lines above say
            if isinstance(value, FieldOptions):
                found.append(value)
    return found


def _inherited_package(bases: tuple[type, ...]) -> str | None:
    for base in bases:
        declaration = getattr(base, "__polywire__", None)
        if declaration is not None and declaration.package is not None:
            package: str = declaration.package
            return package
    return None


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class MessageMeta(msgspec.StructMeta):
    """Makes every message keyword-only, names its fields for JSON and keeps what the class statement says."""

    __polywire__: Declaration
    _KEYWORDS: ClassVar[frozenset[str]] = frozenset()
    """Class keywords beside those below, which `_declared` gets."""

    def __new__(
        mcls,
        class_name: str,
        bases: tuple[type, ...],
        body: dict[str, Any],
        /,
        *,
        package: str | None = None,
        name: str | None = None,
        reserved: tuple[int | str | range, ...] = (),
        transparent: bool = False,
        **options: Any,
    ) -> MessageMeta:
        if package and not PACKAGE.match(package):  # an empty one says: none at all
            raise ContractError(f"{class_name}: package={package!r} is no package name. Write it like 'shop.v1'.")
        if name is not None and not NAME.match(name):
            raise ContractError(f"{class_name}: name={name!r} is no message name. Write it like 'Stock'.")
        own = {key: options.pop(key) for key in mcls._KEYWORDS & options.keys()}
        namespace = _names_around(body)
        renamed = _names_given(class_name, body, namespace)
        if renamed:
            options["rename"] = renamed
        try:
            cls = super().__new__(mcls, class_name, bases, body, kw_only=True, **options)
        except (TypeError, ValueError) as error:
            raise ContractError(f"{class_name} cannot be a Message: {error}.") from error
        cls.__polywire__ = Declaration(
            name=name or class_name,
            package=package if package is not None else _inherited_package(bases),
            reserved=tuple(reserved) if isinstance(reserved, (tuple, list)) else (reserved,),
            transparent=transparent,
            namespace=namespace,
            annotations=body.get("__annotations__", {}),
        )
        cls.__annotations__ = _Annotations(cls, body.get("__annotations__", {}))
        cls._declared(own)
        _by_name.setdefault(cls.__polywire__.name, weakref.WeakSet()).add(cls)
        return cls

    def _declared(cls, own: dict[str, Any]) -> None:  # noqa: N805 - a method of classes
        """For metaclasses with keywords of their own: *own* has those that were given."""


# Said once more for mypy, which otherwise takes what msgspec.Struct says (positional fields).
@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, metaclass=MessageMeta):
    """A value that travels: subclass it and annotate fields. Made with keywords, compared by value.

    Class keywords: *package* and *name* on the wire, where they are not derived (from the contract that uses the
    message, and from the class); *reserved*, the numbers and names of fields that are gone, which stay free; *tag*,
    which tells the members of a union apart (`payment: Card | Cash`); *transparent*, for a class of one scalar field
    that stands for that scalar in a oneof.

    A field without a default has to be there in JSON; in protobuf an absent scalar, list or map is its zero value, and
    an absent message is refused. Building an object checks nothing; decoding does, and so does sending.
    """

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            package: str | None = None,
            name: str | None = None,
            reserved: tuple[int | str | range, ...] = (),
            transparent: bool = False,
            tag: bool | str | int | None = None,
            tag_field: str | None = None,
            frozen: bool = False,
            order: bool = False,
            **options: Any,
        ) -> None: ...

    def __repr__(self) -> str:
        hidden = sensitive_fields(type(self))
        shown = (f"{name}={'***' if name in hidden else repr(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        hidden = sensitive_fields(type(self))
        return [(name, "***" if name in hidden else getattr(self, name)) for name in self.__struct_fields__]


def sensitive_fields(cls: type[Message]) -> frozenset[str]:
    """The fields whose values do not belong into logs; all of them if the annotations cannot be read."""
    cache = cls.__polywire__.cache
    if "sensitive" not in cache:
        try:
            hints = hints_of(cls)
        except ContractError:
            return frozenset(cls.__struct_fields__)
        cache["sensitive"] = frozenset(name for name, hint in hints.items() if _is_sensitive(hint))
    sensitive: frozenset[str] = cache["sensitive"]
    return sensitive


def _is_sensitive(hint: Any) -> bool:
    """Whether `Field(sensitive=True)` stands anywhere in an annotation, at an element of a list as well."""
    if any(isinstance(part, FieldOptions) and part.sensitive for part in getattr(hint, "__metadata__", ())):
        return True
    return any(_is_sensitive(part) for part in typing.get_args(hint) if typing.get_args(part))


def hints_of(cls: type[Message]) -> dict[str, Any]:
    """The annotations of all fields, in order, with every name in them resolved."""
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        declaration = base.__dict__.get("__polywire__")
        if declaration is None:
            continue
        module = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        names = {**declaration.namespace, **module, base.__name__: base}
        for field, hint in declaration.annotations.items():
            hints[field] = _resolved(base, field, hint, names)
    return {field: hints[field] for field in cls.__struct_fields__}


def _resolved(cls: type, field: str, hint: Any, names: dict[str, Any]) -> Any:
    def holder() -> None: ...

    holder.__annotations__ = {"hint": hint}
    try:
        return typing.get_type_hints(holder, names, names, include_extras=True)["hint"]
    except NameError as error:
        raise ContractError(
            f"{cls.__qualname__}.{field} is annotated {hint!r}, but {error.name!r} is not defined where the class "
            "stands. Import it outside of `if TYPE_CHECKING`, at the top of the module."
        ) from error
    except (SyntaxError, TypeError) as error:
        raise ContractError(f"{cls.__qualname__}.{field} is annotated {hint!r}, which is no type: {error}.") from error


def message_named(full_name: str) -> type[Message] | None:
    """The class that is called `shop.v1.Stock` on the wire, if this program has declared one; else None."""
    return next(_messages_named(full_name), None)


def only_message_named(full_name: str) -> type[Message] | None:
    """As `message_named`, but None as well where this program has several, such as two versions of a contract."""
    found = _messages_named(full_name)
    first = next(found, None)
    return first if next(found, None) is None else None


def _messages_named(full_name: str) -> Iterator[type[Message]]:
    parts = full_name.split(".")
    for first in range(len(parts)):  # a name may be dotted as well as a package
        package, name = ".".join(parts[:first]), ".".join(parts[first:])
        for cls in _by_name.get(name, ()):
            if (cls.__polywire__.package or "") == package:
                yield cls
