"""What a setting is: a dataclass field that carries all that other code must know about it.

    doc, range, choices    for people, and checked when a section is built
    speed_only             changes how fast a result comes, never the result: in no key
    path                   names a file or folder: in keys by its content, made absolute for workers in other folders
    shapes_network         False: the network that is built is the same whatever the value
    read_when              the setting has an effect only under a condition (or one of several): otherwise in no key
    key_at_default         False: in no key while it has its default. For settings added later: artefacts stored before keep their keys,
                           because the default is what the code did before the setting existed

Everything that depends on these is a query over the fields (`about`), never a list of names elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from idgbr.errors import BadRequest, nearest
from idgbr.interfaces import Json

_METADATA = "setting"


@dataclass(frozen=True)
class When:
    """A condition on a setting `stage.field`: it has one of `values`; without values: it is neither zero, empty nor
    false."""

    name: str
    values: tuple[object, ...] = ()

    def holds(self, value: object) -> bool:
        """Whether the condition is met by this value of its setting."""
        return value in self.values if self.values else bool(value)


@dataclass(frozen=True)
class About:
    """What a setting says about itself; see the head of this file."""

    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    speed_only: bool = False
    path: bool = False
    shapes_network: bool = True
    read_when: When | tuple[When, ...] | None = None
    in_key: bool = True
    key_at_default: bool = True


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    speed_only: bool = False,
    path: bool = False,
    shapes_network: bool = True,
    read_when: When | tuple[When, ...] | None = None,
    in_key: bool = True,
    key_at_default: bool = True,
) -> Any:
    """A dataclass field with what `About` holds; `low` and `high` are inclusive.

    Args:
        in_key: False where the key of the stage holds the same in another form, as the content of `data.root`.
    """
    about = About(doc, low, high, choices, speed_only, path, shapes_network and not speed_only, read_when, in_key, key_at_default)
    return field(default=default, metadata={_METADATA: about})


def inherited(cls: type[Section], name: str, default: Any) -> Any:
    """The setting of a base class with another default."""
    return field(default=default, metadata=cls.__dataclass_fields__[name].metadata)


class Section:
    """Base of the stage dataclasses: checks every field against its declared type, range and choices."""

    name: typing.ClassVar[str]
    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            where = f"{self.name}.{f.name}={value!r}"
            object.__setattr__(self, f.name, cast(value, hints[f.name], where))
            _check(getattr(self, f.name), about(f), where)


def about(f: dataclasses.Field[Any]) -> About:
    """What the field of a section says about itself."""
    found: About = f.metadata[_METADATA]
    return found


_known: dict[type[Section], tuple[tuple[str, About], ...]] = {}  # fields of a class never change, and trials come by thousands


def settings(section: Section | type[Section]) -> tuple[tuple[str, About], ...]:
    """Names and descriptions of all settings of a section, in order."""
    cls = section if isinstance(section, type) else type(section)
    if cls not in _known:
        _known[cls] = tuple((f.name, about(f)) for f in dataclasses.fields(cls))
    return _known[cls]


def identity(section: Section, *, paths: bool) -> Json:
    """Values that tell two results apart: without settings of speed, and without added ones that have their default.

    Args:
        paths: also settings that name a file or folder.
    """
    values: Json = {}
    for name, a in settings(section):
        value = getattr(section, name)
        if a.speed_only or (a.path and not paths) or (not a.key_at_default and value == section.__dataclass_fields__[name].default):
            continue
        values[name] = value
    return values


def network_shape(section: Section) -> tuple[object, ...]:
    """Values of the settings that decide which network is built: equal for two sections that build the same one."""
    return tuple(getattr(section, name) for name, a in settings(section) if a.shapes_network)


def names_of_paths(section: Section | type[Section]) -> tuple[str, ...]:
    """Names of the settings of a section that are paths."""
    return tuple(name for name, a in settings(section) if a.path)


def cast(value: object, hint: Any, where: str) -> Any:
    """`value` as type `hint` (bool, int, float, str, tuple of one of these); strings are parsed, nothing is
    guessed."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = [v for v in value.strip("()[] ").split(",") if v.strip()]
        if not isinstance(value, list | tuple):
            raise BadRequest(f"{where} is not a list", allowed=f"values of type {item.__name__}, separated by commas")
        return tuple(cast(v.strip() if isinstance(v, str) else v, item, where) for v in value)
    if isinstance(hint, types.UnionType):
        raise TypeError(f"settings have one type each: {where}")
    if hint is bool:
        if isinstance(value, bool):
            return value
        lowered = str(value).lower()
        if lowered in ("true", "on", "yes", "1", "false", "off", "no", "0"):
            return lowered in ("true", "on", "yes", "1")
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value.replace("_", "").removeprefix("-").isdigit():
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass  # falls through to the one error below
    elif hint is str and isinstance(value, str):
        return value
    raise BadRequest(f"{where} has the wrong type", allowed=getattr(hint, "__name__", str(hint)))


def _check(value: Any, a: About, where: str) -> None:
    choices, low, high = a.choices, a.low, a.high
    if choices and value not in choices:
        raise BadRequest(f"{where} is not a choice", allowed=", ".join(choices), hint=nearest(str(value), choices) or None)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and number != number:
            raise BadRequest(f"{where} is not a number")
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = " and ".join(
                b for b in (f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else "") if b
            )
            raise BadRequest(f"{where} is out of range", allowed=bounds)


def canonical_json(value: object) -> str:
    """One spelling for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: object) -> str:
    """20 hex digits of sha256 over the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:20]
