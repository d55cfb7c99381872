"""Settings that nest: what belongs to a choice is set with it, and not without it.

A configuration is a frozen dataclass. A field annotated with a registry is a choice:

    objective: Annotated[Objective, OBJECTIVES] = Plain()
    methods: Annotated[tuple[Method, ...], METHODS] = ()

Its value is an instance of what is registered (a small frozen dataclass), its name, or
a mapping with `name` and settings, as TOML and JSON have it:

    objective = "masked"
    objective = {name = "masked", ratio = 0.6}
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from afterimage.errors import UserError, did_you_mean
from afterimage.plugins import Registry

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A field whose value is chosen from a registry."""

    registry: Registry[Any]
    several: bool
    """A tuple of them, each at most once."""


def choices(config_class: type) -> dict[str, Choice]:
    """The choices among the fields of a configuration."""
    found = {}
    for name, hint in typing.get_type_hints(config_class, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        registry = next((m for m in marks if isinstance(m, Registry)), None)
        if registry is not None:
            kinds = (hint.__origin__, *typing.get_args(hint.__origin__))
            several = any(typing.get_origin(kind) is tuple for kind in kinds)
            found[name] = Choice(registry, several)
    return found


def resolve(config: Any) -> None:
    """Replaces names and mappings in the choices of a configuration by instances.

    For `__post_init__`. Raises UserError for what is not registered, or settings that
    it does not have.
    """
    for name, choice in choices(type(config)).items():
        value = getattr(config, name)
        if choice.several:
            given = value if isinstance(value, tuple | list) else (value,)
            made: Any = tuple(_made(name, choice.registry, one) for one in given)
            names = [one.name for one in made]
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise UserError(f"{name}: {', '.join(twice)} is given twice")
        else:
            made = _made(name, choice.registry, value)
        object.__setattr__(config, name, made)


def _made(field: str, registry: Registry[Any], value: Any) -> Any:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        known = registry.get(value.name) if hasattr(value, "name") else None
        if known is None or not isinstance(value, known):
            raise UserError(
                f"{field}={value!r}: expected the name of a registered "
                f"{registry.kind}, or an instance of one"
            )
        return value
    settings = dict(value)
    kind = registry.get(settings.pop("name", ""), settings.pop("package", None))
    return from_dict(kind, settings, f"{field} {kind.name}")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values of a configuration, for JSON and TOML; `from_dict` reads
    them back. A choice has its `name`, and the `package` that it comes from."""
    found: dict[str, Any] = {}
    registries = choices(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in registries:
            choice = registries[field.name]
            each = [_named(choice.registry, one) for one in _each(value, choice)]
            value = each if choice.several else each[0]
        found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain nested values in one level: {"objective": "masked", "objective.ratio": …}.

    A choice's name is its own value; several choices are `methods.NAME`.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = prefix + key
        if isinstance(value, Mapping) and "name" in value:
            own = {k: v for k, v in value.items() if k != "name"}
            found |= {path: value["name"], **dotted(own, path + ".")}
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            found[path] = [one["name"] for one in value]
            for one in value:
                own = {k: v for k, v in one.items() if k != "name"}
                found |= dotted(own, f"{path}.{one['name']}.")
        else:
            found[path] = value
    return found


def _each(value: Any, choice: Choice) -> Sequence[Any]:
    return value if choice.several else (value,)


def _named(registry: Registry[Any], value: Any) -> dict[str, Any]:
    origin = registry.origin(value.name)
    package = {} if origin is None else {"package": origin}
    return {"name": value.name, **package, **to_dict(value)}


def from_dict(
    config_class: type[Config], values: Mapping[str, Any], where: str = "settings"
) -> Config:
    """A configuration of plain nested values.

    Raises UserError for keys that it does not have, with the nearest that it has, and
    for those that it needs.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # pyright: ignore[reportArgumentType]
    problems = [
        f"{key!r} is no setting of {where}{did_you_mean(key, fields)}"
        for key in values
        if key not in fields
    ]
    problems += [
        f"{name!r} is missing in {where}"
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if problems:
        raise UserError("; ".join(problems))
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return config_class(**plain)


def given_problems(config: Any) -> list[str]:
    """The impossible values of a configuration and of everything chosen in it."""
    from afterimage.fields import field_problems

    found = field_problems(config)
    for name, choice in choices(type(config)).items():
        for one in _each(getattr(config, name), choice):
            found += [f"{one.name}.{problem}" for problem in given_problems(one)]
    return found
