"""Events, steps and snapshots <-> lines of a recording, exactly and legibly.

Decides one canonical text (JSON on one line) for any value built of dataclasses: fields in the order of their class, sets and the
keys of mappings sorted, a member of a union named by its class under "$". Equal values give equal bytes on every machine and under
every hash seed. The caller names the classes that may be a line; what is inside them follows from their type hints, read once.
Must not know any program.
"""

from __future__ import annotations

import json
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, Final, NewType, Union, get_args, get_origin, get_type_hints

from atoll.model.errors import AtollError, quoted

# Names the class of an object where its place in the text does not say it. No field of a dataclass can have this name.
_CLASS: Final = "$"
_PRIMITIVES: Final = {bool: "true or false", int: "a whole number", str: "a text", types.NoneType: "null"}
_MAPPINGS: Final = (dict, Mapping)
_SETS: Final = (set, frozenset, AbstractSet)


class RecordingError(AtollError):
    """A value or a line does not fit its class. `path` leads to the place."""

    def __init__(self, path: str, value: object, expected: str) -> None:
        super().__init__(f"{path or 'the line'} is {quoted(value)}: expected {expected}")
        self.path = path
        self.value = value
        self.expected = expected

    def under(self, step: str) -> RecordingError:
        """The same, seen from one level further out."""
        return RecordingError(step + self.path, self.value, self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """How values of one hint are written and read. `kinds`: Python types of their JSON form; `accepts`: types of the values.

    `encode` None: the value is its own JSON form.
    """

    encode: Callable[[Any], Any] | None
    decode: Callable[[Any], Any]
    kinds: frozenset[type]
    accepts: tuple[type, ...]


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


class TaggedCodec:
    """Writes and reads instances of `classes`, each line naming its class. TypeError for a hint that has no canonical text."""

    __slots__ = ("_records", "_roots")

    def __init__(self, classes: Iterable[type]) -> None:
        self._records: dict[type, _Record] = {}
        self._roots: dict[str, _Record] = {}
        for cls in classes:
            if cls.__name__ in self._roots and self._roots[cls.__name__].cls is not cls:
                raise TypeError(f"two classes named {cls.__name__}: use a codec for each")
            self._roots[cls.__name__] = self._record(cls)

    def encode(self, value: object) -> bytes:
        """One line without its newline. RecordingError when a value does not fit its hint; TypeError for a class not named."""
        root = self._roots.get(type(value).__name__)
        if root is None or root.cls is not type(value):
            raise TypeError(f"{type(value).__name__} is not among the classes of this codec")
        try:
            return _text({_CLASS: root.cls.__name__, **root.encode(value)}).encode("ascii")
        except TypeError as error:
            raise RecordingError(root.cls.__name__, value, f"plain values ({error})") from error

    def decode(self, encoded: bytes) -> object:
        """The value again. RecordingError for anything that `encode` would not have written."""
        try:
            data = json.loads(encoded)
        except UnicodeDecodeError as error:
            raise RecordingError("", encoded[:80], "one JSON object, in UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise RecordingError("", encoded[:80], f"one JSON object ({error})") from error
        root = self._roots.get(str(data.get(_CLASS))) if isinstance(data, dict) else None
        if root is None:
            raise RecordingError("", encoded[:80], f'an object whose "{_CLASS}" is one of {", ".join(self._roots)}')
        try:
            return root.decode(data)
        except RecordingError as error:
            raise error.under(root.cls.__name__) from None

    def _record(self, cls: type) -> _Record:
        known = self._records.get(cls)
        if known is None:
            # Registered before its fields are read: a class may contain itself.
            known = self._records[cls] = _Record(cls)
            known.read_fields(self._rule)
        return known

    def _rule(self, hint: Any) -> _Rule:
        while isinstance(hint, NewType):
            hint = hint.__supertype__
        if hint is None:
            hint = types.NoneType
        origin = get_origin(hint)
        if origin is Union or origin is types.UnionType:
            return self._union(hint)
        if origin is typing.Final or origin is typing.Annotated:
            return self._rule(get_args(hint)[0])
        if origin is not None:
            return self._container(hint, origin)
        if hint in _PRIMITIVES:
            return _primitive(hint)
        if hint is float:
            return _Rule(encode=None, decode=_float, kinds=frozenset({float, int}), accepts=(float, int))
        if hint is bytes:
            return _Rule(encode=bytes.hex, decode=_bytes, kinds=frozenset({str}), accepts=(bytes,))
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _enum(hint)
        if isinstance(hint, type) and (is_dataclass(hint) or hasattr(hint, "_fields")):
            record = self._record(hint)
            return _Rule(encode=record.encode, decode=record.decode, kinds=frozenset({dict}), accepts=(hint,))
        raise TypeError(f"no canonical text for {hint!r}")

    def _container(self, hint: Any, origin: Any) -> _Rule:
        args = get_args(hint)
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            return _fixed_tuple([self._rule(arg) for arg in args])
        if origin in _MAPPINGS:
            return _mapping(self._rule(args[0]), self._rule(args[1]))
        item = self._rule(args[0])
        if origin in _SETS:
            return _sequence(item, set if origin is set else frozenset, ordered=False)
        if origin in (tuple, list, deque, Sequence):
            return _sequence(item, tuple if origin is Sequence else origin, ordered=True)
        raise TypeError(f"no canonical text for {hint!r}")

    def _union(self, hint: Any) -> _Rule:
        records: dict[str, _Record] = {}
        plain: list[_Rule] = []
        for arg in get_args(hint):
            rule = self._rule(arg)
            if rule.kinds == {dict} and len(rule.accepts) == 1:
                record = self._record(rule.accepts[0])
                if record.cls.__name__ in records:
                    raise TypeError(f"two classes named {record.cls.__name__} in {hint!r}")
                records[record.cls.__name__] = record
            else:
                plain.append(rule)
        kinds = [kind for rule in plain for kind in rule.kinds]
        if len(set(kinds)) != len(kinds):
            raise TypeError(f"members of {hint!r} cannot be told apart in a text")
        if len(records) == 1 and all(rule.kinds == {types.NoneType} for rule in plain):
            return _optional(next(iter(records.values())))
        return _tagged(records, plain)


class _Record:
    """A dataclass, or a named tuple, as a JSON object."""

    __slots__ = ("_decoders", "_defaults", "_encoders", "cls")

    def __init__(self, cls: type) -> None:
        if not is_dataclass(cls) and not hasattr(cls, "_fields"):
            raise TypeError(f"{cls.__name__} is no dataclass")
        self.cls: Final = cls
        self._encoders: list[tuple[str, Callable[[Any], Any] | None]] = []
        self._decoders: list[tuple[str, Callable[[Any], Any]]] = []
        self._defaults: frozenset[str] = frozenset()

    def read_fields(self, rule_of: Callable[[Any], _Rule]) -> None:
        """Learns the fields from the type hints."""
        hints = get_type_hints(self.cls)
        for name, has_default in _fields_of(self.cls).items():
            rule = rule_of(hints[name])
            self._encoders.append((name, rule.encode))
            self._decoders.append((name, rule.decode))
            if has_default:
                self._defaults |= {name}

    def encode(self, value: Any) -> dict[str, Any]:
        if type(value) is not self.cls:
            raise RecordingError("", value, f"a {self.cls.__name__}")
        encoded: dict[str, Any] = {}
        for name, encode in self._encoders:
            held = getattr(value, name)
            encoded[name] = held if encode is None else encode(held)
        return encoded

    def decode(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise RecordingError("", data, f"an object, the fields of {self.cls.__name__}")
        values: dict[str, Any] = {}
        for name, decode in self._decoders:
            if name in data:
                try:
                    values[name] = decode(data[name])
                except RecordingError as error:
                    raise error.under(f".{name}") from None
            elif name not in self._defaults:
                raise RecordingError(f".{name}", None, "a value: the field has no default")
        return self.cls(**values)


def _fields_of(cls: Any) -> dict[str, bool]:
    """The fields, and whether each has a default."""
    if hasattr(cls, "_fields"):
        return {name: name in cls._field_defaults for name in cls._fields}
    for each in fields(cls):
        if not each.init:
            raise TypeError(f"{cls.__name__}.{each.name} cannot be given to its class")
    return {each.name: each.default is not MISSING or each.default_factory is not MISSING for each in fields(cls)}


def _primitive(hint: type) -> _Rule:
    expected = _PRIMITIVES[hint]

    def decode(data: Any) -> Any:
        if type(data) is not hint:
            raise RecordingError("", data, expected)
        return data

    return _Rule(encode=None, decode=decode, kinds=frozenset({hint}), accepts=(hint,))


def _float(data: Any) -> Any:
    if type(data) is not float and type(data) is not int:
        raise RecordingError("", data, "a number")
    return data


def _bytes(data: Any) -> bytes:
    try:
        return bytes.fromhex(data)
    except (TypeError, ValueError):
        raise RecordingError("", data, "bytes in hex") from None


def _enum(hint: type[Enum]) -> _Rule:
    values = {member.value: member for member in hint}
    texts = {member: member.value for member in hint}

    def decode(data: Any) -> Any:
        found = values.get(data) if isinstance(data, str | int) else None
        if found is None:
            raise RecordingError("", data, f"one of {', '.join(str(value) for value in values)}")
        return found

    return _Rule(encode=texts.__getitem__, decode=decode, kinds=frozenset(type(value) for value in values), accepts=(hint,))


def _items(data: Any, decode: Callable[[Any], Any]) -> list[Any]:
    if not isinstance(data, list):
        raise RecordingError("", data, "a list")
    decoded: list[Any] = []
    try:
        for item in data:
            decoded.append(decode(item))  # noqa: PERF401 - its length tells which entry is wrong
    except RecordingError as error:
        raise error.under(f"[{len(decoded)}]") from None
    return decoded


def _sequence(item: _Rule, build: Callable[[Iterable[Any]], Any], *, ordered: bool) -> _Rule:
    each = item.encode

    def encode(value: Any) -> list[Any]:
        encoded = list(value) if each is None else [each(entry) for entry in value]
        return encoded if ordered else sorted(encoded, key=_text)

    def decode(data: Any) -> Any:
        return build(_items(data, item.decode))

    accepts: tuple[type, ...] = (tuple, list, deque) if ordered else (set, frozenset)
    return _Rule(encode=encode, decode=decode, kinds=frozenset({list}), accepts=accepts)


def _fixed_tuple(rules: list[_Rule]) -> _Rule:
    def encode(value: Any) -> list[Any]:
        return [entry if rule.encode is None else rule.encode(entry) for entry, rule in zip(value, rules, strict=True)]

    def decode(data: Any) -> tuple[Any, ...]:
        if not isinstance(data, list) or len(data) != len(rules):
            raise RecordingError("", data, f"a list of {len(rules)}")
        return tuple(rule.decode(entry) for entry, rule in zip(data, rules, strict=True))

    return _Rule(encode=encode, decode=decode, kinds=frozenset({list}), accepts=(tuple,))


def _mapping(key: _Rule, value: _Rule) -> _Rule:
    pair = _fixed_tuple([key, value])
    encode_pair = pair.encode
    assert encode_pair is not None

    def encode(held: Any) -> list[Any]:
        return sorted([encode_pair(item) for item in held.items()], key=lambda item: _text(item[0]))

    def decode(data: Any) -> dict[Any, Any]:
        try:
            return dict(_items(data, pair.decode))
        except TypeError:
            raise RecordingError("", data, "keys that can be looked up") from None

    return _Rule(encode=encode, decode=decode, kinds=frozenset({list}), accepts=(dict,))


def _optional(record: _Record) -> _Rule:
    def encode(value: Any) -> Any:
        return None if value is None else record.encode(value)

    def decode(data: Any) -> Any:
        return None if data is None else record.decode(data)

    accepts = (record.cls, types.NoneType)
    return _Rule(encode=encode, decode=decode, kinds=frozenset({dict, types.NoneType}), accepts=accepts)


def _tagged(records: dict[str, _Record], plain: list[_Rule]) -> _Rule:
    by_class = {record.cls: record for record in records.values()}
    by_type = {accepted: rule for rule in plain for accepted in rule.accepts}
    by_kind = {kind: rule for rule in plain for kind in rule.kinds}
    names = ", ".join([*records, *(accepted.__name__ for accepted in by_type)])

    def encode(value: Any) -> Any:
        record = by_class.get(type(value))
        if record is not None:
            return {_CLASS: record.cls.__name__, **record.encode(value)}
        rule = by_type.get(type(value))
        if rule is None:
            raise RecordingError("", value, f"one of {names}")
        return value if rule.encode is None else rule.encode(value)

    def decode(data: Any) -> Any:
        if isinstance(data, dict):
            record = records.get(str(data.get(_CLASS)))
            if record is not None:
                return record.decode(data)
        rule = by_kind.get(type(data))
        if rule is None:
            raise RecordingError("", data, f"one of {names}")
        return rule.decode(data)

    kinds = frozenset(by_kind) | (frozenset({dict}) if records else frozenset())
    return _Rule(encode=encode, decode=decode, kinds=kinds, accepts=(*by_class, *by_type))
