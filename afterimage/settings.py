"""Nested settings: a choice's own settings exist only together with the choice.

A configuration is a frozen dataclass. A field annotated with a registry is a choice:

    objective: Annotated[Objective, OBJECTIVES] = Plain()
    methods: Annotated[tuple[Method, ...], METHODS] = ()

Its value is an instance of a registered class (a small frozen dataclass), its name, or
a mapping with `name` and settings, as in TOML and JSON:

    objective = "masked"
    objective = {name = "masked", ratio = 0.6}
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from afterimage.errors import UserError, did_you_mean
from afterimage.plugins import Registry

Config = TypeVar("Config")
_PAIRS = (
    ("steps", "epochs"),
    ("warmup_steps", "warmup_epochs"),
    ("labels", "labels_per_class"),
)
_EITHER = {**dict(_PAIRS), **{b: a for a, b in _PAIRS}}
"""Pairs of alternative settings: setting one drops the other from the layer below."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A field whose value is chosen from a registry."""

    registry: Registry[Any]
    several: bool
    """Whether the field takes a tuple of choices, each at most once."""


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
    """Replaces names and mappings in a configuration's choices with instances.

    For `__post_init__`. Raises UserError for an unregistered name or an unknown
    setting.
    """
    for name, choice in choices(type(config)).items():
        value = getattr(config, name)
        if choice.several:
            given = value if isinstance(value, tuple | list) else (value,)
            made: Any = tuple(_made(name, choice.registry, one) for one in given)
            names = [one.name for one in made]
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise UserError(f"{name}: {', '.join(twice)} may be given only once")
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
    them back. A choice has its `name`, and the `package` it comes from."""
    found: dict[str, Any] = {}
    registries = choices(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in registries:
            choice = registries[field.name]
            each = []
            for one in value if choice.several else (value,):
                origin = choice.registry.origin(one.name)
                package = {} if origin is None else {"package": origin}
                each.append({"name": one.name, **package, **to_dict(one)})
            value = each if choice.several else each[0]
        found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain nested values in one level: {"objective": "masked", "masked.ratio": …}.

    As in flags, the settings of a choice follow its name.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        several = value if isinstance(value, list) else [value]
        if not (several and all(map(_is_choice, several))):
            found[prefix + key] = value
            continue
        names = [one["name"] for one in several]
        found[prefix + key] = names if isinstance(value, list) else names[0]
        for one in several:
            own = {k: v for k, v in one.items() if k != "name"}
            found |= dotted(own, f"{one['name']}.")
    return found


def _is_choice(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" in value


def spelled(path: str) -> str:
    """A setting as its flag spells it, without the hyphens: labels-per-class."""
    return path.replace("_", "-").rstrip("-")


def from_dict(
    config_class: type[Config], values: Mapping[str, Any], where: str = "settings"
) -> Config:
    """Build a configuration from plain nested values.

    Raises UserError for unknown keys, with the nearest known one, and for missing
    required keys.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # pyright: ignore[reportArgumentType]
    problems = [
        f"{where} has no setting {key!r}{did_you_mean(key, fields)}"
        for key in values
        if key not in fields
    ]
    problems += [
        f"{where} needs {name!r}"
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
    """The invalid values in a configuration and in everything chosen in it."""
    from afterimage.fields import field_problems

    found = field_problems(config)
    for name, choice in choices(type(config)).items():
        value = getattr(config, name)
        for one in value if choice.several else (value,):
            found += [f"{one.name}.{problem}" for problem in given_problems(one)]
    return found


def merge(
    config_class: type, below: Mapping[str, Any], above: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge the plain settings `above` over those `below`.

    If both make the same choice, its settings are merged too, and those above win; a
    different choice uses only its own settings.
    """
    settings = {k: v for k, v in below.items() if _EITHER.get(k) not in above}
    registries = choices(config_class)
    for key, value in above.items():
        if key not in registries:
            settings[key] = value
            continue
        known = {one["name"]: one for one in as_mappings(settings.get(key, ()))}
        made = [{**known.get(o["name"], {}), **o} for o in as_mappings(value)]
        settings[key] = made if registries[key].several else made[0]
    return settings


def as_mappings(value: Any) -> list[dict[str, Any]]:
    """One or several choices, as mappings with `name` and settings."""
    if value is dataclasses.MISSING:
        return []
    if isinstance(value, list | tuple):
        return [one for inner in value for one in as_mappings(inner)]
    if isinstance(value, str):
        return [{"name": value}]
    if isinstance(value, Mapping):
        if not isinstance(value.get("name"), str):
            raise UserError(
                f"{dict(value)}: the choice has no name; add one, e.g. {{'name': "
                "'masked'}"
            )
        return [dict(value)]
    return [{"name": value.name, **to_dict(value)}]


def default_of(config_class: Any, name: str) -> Any:
    """The default of a field; MISSING if it has none."""
    field = config_class.__dataclass_fields__[name]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def field_documents(config_class: type) -> Mapping[str, str]:
    """{field: the string below it, as one line}, including all base classes.

    Kept, because reading the source takes milliseconds.
    """
    documents: dict[str, str] = {}
    for base in reversed(config_class.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # Generic, and classes without a file
            continue
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        documents |= {
            ast.unparse(field.target): " ".join(str(text.value.value).split())
            for field, text in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        }
    return documents
