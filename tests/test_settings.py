"""Choices by name: registries, nested settings, plain values and back."""

import dataclasses
import importlib.metadata
import json
from typing import Annotated, Any

import pytest

from afterimage import plugins
from afterimage.errors import UserError
from afterimage.plugins import Registry
from afterimage.settings import choices, from_dict, given_problems, resolve, to_dict

SHAPES: Registry[Any] = Registry("shape", "tests.no_such_package")


@SHAPES.add("circle")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float = 1.0


@SHAPES.add("square")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    side: float = 2.0
    steps: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    main: Annotated[Any, SHAPES] = "circle"
    more: Annotated[tuple[Any, ...], SHAPES] = ()
    size: int = 8

    def __post_init__(self):
        resolve(self)


def test_the_choices_of_a_configuration():
    found = choices(Drawing)
    assert {name: choice.several for name, choice in found.items()} == {
        "main": False,
        "more": True,
    }


@pytest.mark.parametrize(
    "given", ["square", {"name": "square"}, Square(), {"name": "square", "side": 2.0}]
)
def test_a_choice_is_a_name_a_mapping_or_an_instance(given):
    assert Drawing(main=given).main == Square()


def test_plain_values_and_back():
    drawing = Drawing(main=Square(side=0.5), more=("circle", Square(steps=1)))
    plain = json.loads(json.dumps(to_dict(drawing)))
    assert plain["main"] == {
        "name": "square",
        "package": "tests.test_settings",
        "side": 0.5,
        "steps": 3,
    }
    assert from_dict(Drawing, plain) == drawing


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"main": "sqare"}, "square"),
        ({"main": 3}, "main=3"),
        ({"main": {"name": "circle", "sides": 2}}, "sides"),
        ({"more": ("circle", "circle")}, "circle"),
        ({"main": {"name": "hexagon", "package": "shapes 1.0"}}, "pip install shapes"),
    ],
)
def test_what_cannot_be_chosen_is_named(given, said):
    with pytest.raises(UserError, match=said):
        Drawing(**given)


def test_impossible_values_are_named_by_their_choice():
    drawing = Drawing(main=Square(side=float("nan")), more=(Circle(radius=1e40),))
    found = given_problems(drawing)
    assert [text.split("=")[0] for text in found] == ["square.side", "circle.radius"]


@pytest.mark.parametrize("name", ["", "Upper", "two words", "-x", "a--b", "ü"])
def test_a_name_is_lower_case_words(name):
    with pytest.raises(UserError):
        SHAPES.add(name)


def test_a_name_is_given_once():
    with pytest.raises(UserError, match="circle"):
        SHAPES.add("circle")(type("Other", (), {"__module__": "elsewhere"}))


def test_a_plug_in_that_cannot_be_imported_is_reported(monkeypatch, capsys):
    broken = importlib.metadata.EntryPoint(
        "bad", "no_such_module_at_all", plugins.GROUP
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [broken])
    plugins.load_plugins.__wrapped__()
    assert "no_such_module_at_all" in capsys.readouterr().err
