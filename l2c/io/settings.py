"""Typed, ranged settings: the same check for a value given in Python and for one given to a command.

A group of settings is a frozen dataclass that derives from `Settings`; each field says its rule:

    @dataclass(frozen=True)
    class RouterSettings(Settings, group="router"):
        penalty: float = number(3e-4, at_least=0)

A value that breaks its rule raises a ValueError of one sentence, when the dataclass is made.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from l2c.io.names import as_text, near_names

RULE = "rule"
LARGEST = 1e30  # numbers without a bound are smaller, either way: larger ones overflow 32-bit floats
BITS = 2**31  # whole numbers without a bound are smaller: larger ones overflow in libraries, or never end
S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Rule:
    """The allowed values of a setting; subclasses name one kind of value.

    Attributes:
        optional: null (None) is allowed.
        example: a value to show in messages; None = the default or one that the kind suggests.

    """

    optional: bool = field(default=False, kw_only=True)
    example: Any = field(default=None, kw_only=True)

    def kind(self) -> str:
        """Return the allowed values in words, such as `a number >= 0`."""
        raise NotImplementedError

    def fits(self, value: Any) -> bool:
        """Return whether a value other than null is allowed."""
        raise NotImplementedError

    def shown(self, default: Any) -> Any:
        """Return an allowed value for the message."""
        return self.example if self.example is not None else default

    def check(self, name: str, value: Any, default: Any = None) -> None:
        """Refuse a value.

        Raises:
            ValueError: if the value is not allowed; one sentence.

        """
        if value is None and self.optional:
            return
        if value is not None and self.fits(value):
            return
        kind = self.kind() + (" or null" if self.optional else "")
        if type(value) in (int, float) and LARGEST < abs(value) < math.inf:  # a bound that `kind` leaves out
            kind += f" (numbers of at most {as_text(LARGEST)})"
        example = self.shown(default)
        hint = "" if example is None else f"; e.g. {name}={as_text(example)}"
        raise ValueError(f"{name} must be {kind}, got {described(value)}{hint}")


@dataclass(frozen=True)
class Number(Rule):
    """A finite number between bounds; `whole` allows integers only."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    whole: bool = False

    def kind(self) -> str:
        """Return the kind with its bounds."""
        bounds = {">=": self.at_least, ">": self.above, "<=": self.at_most, "<": self.below}
        given = [f"{sign} {as_text(bound)}" for sign, bound in bounds.items() if bound is not None]
        noun = "a whole number" if self.whole else "a number"
        return f"{noun} {' and '.join(given)}".rstrip()

    def fits(self, value: Any) -> bool:
        """Return whether a value is such a number."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if not -LARGEST <= value <= LARGEST or (self.whole and self.at_most is None and abs(value) >= BITS):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def check(self, name: str, value: Any, default: Any = None) -> None:
        """Refuse a value; of a whole number that is too large its bound is said, which `kind` leaves out."""
        if self.whole and self.at_most is None and type(value) is int and value >= BITS:
            raise ValueError(f"{name} must be a whole number below {BITS}, got {described(value)}")
        super().check(name, value, default)

    def shown(self, default: Any) -> Any:
        """Return the example, the default or the lower bound."""
        chosen = super().shown(default)
        return chosen if chosen is not None else self.at_least


@dataclass(frozen=True)
class Text(Rule):
    """A text that is not empty; `choices` lists the allowed ones."""

    choices: tuple[str, ...] = ()

    def kind(self) -> str:
        """Return the choices, or `a text`."""
        if not self.choices:
            return "a text"
        *first, last = self.choices
        return f"{', '.join(first)} or {last}" if first else last

    def fits(self, value: Any) -> bool:
        """Return whether a value is such a text."""
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            return False
        return not self.choices or value in self.choices

    def check(self, name: str, value: Any, default: Any = None) -> None:
        """Refuse a value; of choices the near ones are named."""
        if self.choices and isinstance(value, str) and value not in self.choices:
            near = near_names(value, list(self.choices))
            hint = f"; {near}" if near.startswith("did") else ""
            raise ValueError(f"{name} must be {self.kind()}, got {described(value)}{hint}")
        super().check(name, value, default)


@dataclass(frozen=True)
class Flag(Rule):
    """True or false."""

    def kind(self) -> str:
        """Return `true or false`."""
        return "true or false"

    def fits(self, value: Any) -> bool:
        """Return whether a value is a truth value."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class Items(Rule):
    """A list of values that all follow one rule; `single` also allows one value without brackets."""

    item: Rule = field(default_factory=Rule)
    nonempty: bool = True
    single: bool = False

    def kind(self) -> str:
        """Return the kind of the items."""
        return f"a list{' of at least one item' if self.nonempty else ''}, each {self.item.kind()}"

    def fits(self, value: Any) -> bool:
        """Return whether a value is such a list."""
        if not is_list(value):
            return self.single and self.item.fits(value)
        if self.nonempty and not len(value):
            return False
        return all(item is not None and self.item.fits(item) for item in value)


@dataclass(frozen=True)
class Table(Rule):
    """A mapping from names to values that all follow one rule."""

    item: Rule = field(default_factory=Rule)
    names: tuple[str, ...] | None = None

    def kind(self) -> str:
        """Return the kind of the values."""
        keys = "" if self.names is None else f" of {', '.join(self.names) or 'nothing'}"
        return f"a mapping{keys}, each value {self.item.kind()}"

    def fits(self, value: Any) -> bool:
        """Return whether a value is such a mapping."""
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            return False
        if self.names is not None and not set(value) <= set(self.names):
            return False
        return all(
            (entry is None and self.item.optional) or (entry is not None and self.item.fits(entry))
            for entry in value.values()
        )


@dataclass(frozen=True)
class Either(Rule):
    """A value that follows one of several rules."""

    rules: tuple[Rule, ...] = ()

    def kind(self) -> str:
        """Return all kinds."""
        return " or ".join(rule.kind() for rule in self.rules)

    def fits(self, value: Any) -> bool:
        """Return whether one of the rules allows a value."""
        return any(rule.fits(value) for rule in self.rules)


@dataclass(frozen=True)
class Anything(Rule):
    """Any plain value: the part that reads it has its own check."""

    def kind(self) -> str:
        """Return `a plain value`."""
        return "a plain value"

    def fits(self, value: Any) -> bool:
        """Return whether a value is plain, and what a `Number` may be where it is one."""
        if isinstance(value, Mapping):
            return all(isinstance(key, str) and (v is None or self.fits(v)) for key, v in value.items())
        if is_list(value):
            return all(item is None or self.fits(item) for item in value)
        return isinstance(value, (bool, str)) or Number(whole=isinstance(value, int)).fits(value)


def ruled(rule: Rule, default: Any = MISSING) -> Any:
    """Return a dataclass field that follows a rule; without a default the setting is required."""
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata={RULE: rule}, kw_only=True)
    return field(default=default, metadata={RULE: rule}, kw_only=True)


def number(default: Any = MISSING, **bounds: Any) -> Any:
    """Return a field for a finite number; see `Number`."""
    return ruled(Number(**bounds), default)


def whole(default: Any = MISSING, **bounds: Any) -> Any:
    """Return a field for a whole number; see `Number`."""
    return ruled(Number(whole=True, **bounds), default)


def text(default: Any = MISSING, **more: Any) -> Any:
    """Return a field for a text; see `Text`."""
    return ruled(Text(**more), default)


def flag(default: Any = MISSING) -> Any:
    """Return a field for true or false."""
    return ruled(Flag(), default)


class Settings:
    """A group of settings, checked when it is made; derive frozen dataclasses from it.

    Attributes:
        GROUP: the prefix of the group's settings in messages and overrides, such as `router`; empty at the top.

    """

    GROUP: ClassVar[str] = ""

    def __init_subclass__(cls, *, group: str | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if group is not None:
            cls.GROUP = group

    def __post_init__(self) -> None:
        for entry in fields(self):  # type: ignore[arg-type]
            rule = entry.metadata.get(RULE)
            if rule is not None:
                default = None if entry.default is MISSING else entry.default
                rule.check(full_name(self.GROUP, entry.name), getattr(self, entry.name), default)
        self.check_together()

    def check_together(self) -> None:
        """Refuse values that are allowed alone but not together; groups override it."""

    @classmethod
    def of(cls: type[S], given: Mapping[str, Any], *, ignore: Sequence[str] = ()) -> S:
        """Return the settings of a mapping.

        Args:
            given: values by name; what is left out keeps its default.
            ignore: names to pass over, that other parts read.

        Raises:
            ValueError: if a name is unknown or missing, or a value is not allowed.

        """
        known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
        values = {}
        for name, value in given.items():
            if name in ignore:
                continue
            if name not in known:
                near = near_names(str(name), known, full_name(cls.GROUP, ""))
                raise ValueError(f"unknown setting {full_name(cls.GROUP, str(name))}; {near}")
            values[name] = value
        for entry in fields(cls):  # type: ignore[arg-type]
            required = entry.default is MISSING and entry.default_factory is MISSING
            if required and entry.name not in values:
                name = full_name(cls.GROUP, entry.name)
                rule = entry.metadata[RULE]
                raise ValueError(f"{name} is missing; it must be {rule.kind()}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by name, nested groups as dictionaries."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def full_name(group: str, name: str) -> str:
    """Return `router.penalty` for a setting of the group `router`."""
    return f"{group}.{name}" if group else name


def is_list(value: Any) -> bool:
    """Return whether a value is a list, a tuple or another sequence that is no text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def described(value: Any) -> str:
    """Return a refused value in a few words; control characters are escaped, long ones are cut."""
    if value is None or isinstance(value, bool):
        return as_text(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a whole number of more than 63 bits"
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
