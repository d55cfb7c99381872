"""Flags from dataclasses: choices, files, presets, paths, help, near misses."""

import dataclasses
import os
import tomllib
from typing import Annotated, Any, Literal

import pytest

from afterimage.commands.flags import Command, flags_for, parse, settings_of
from afterimage.errors import UserError
from afterimage.plugins import Registry
from afterimage.presets import Preset
from afterimage.settings import resolve, to_dict

SHAPES: Registry[Any] = Registry("shape", "tests.no_such_package")
PENS: Registry[Any] = Registry("pen", "tests.no_such_package")


@SHAPES.add("circle")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle:
    """A round one."""

    radius: float = 1.0
    """Half its width, metres."""


@SHAPES.add("square")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    """A square one."""

    side: float = 2.0
    """Its width, metres."""

    corner_style: Literal["sharp", "round"] = "sharp"
    """How its corners look; with corner_style=round, softer."""


@PENS.add("ink")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ink:
    """A pen."""

    weight: float = 1.0
    """How hard."""


@PENS.add("chalk")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Chalk:
    """A piece of chalk."""

    weight: float = 0.5
    """How hard."""

    colours: tuple[str, ...] = ()
    """Which."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A drawing."""

    data: str
    """Where from."""

    main: Annotated[Any, SHAPES] = "circle"
    """The shape."""

    pens: Annotated[tuple[Any, ...], PENS] = ()
    """The pens."""

    steps: int | None = None
    """Steps."""

    epochs: float | None = None
    """Epochs."""

    mean: tuple[float, float, float] = (0.1, 0.2, 0.3)
    """Three numbers."""

    tidy: bool = True
    """Tidy."""

    def __post_init__(self):
        resolve(self)


PRESETS = {
    "big": Preset(
        about="big ones",
        command="afterimage draw --preset big",
        settings={
            "main": {"name": "square", "side": 9.0},
            "pens": [{"name": "ink", "weight": 3.0}],
            "epochs": 4.0,
        },
        cost="none",
    )
}
COMMAND = Command(
    name="draw",
    config=Drawing,
    about="Draws.",
    kind="draw",
    positional="data",
    images=("data",),
    presets=PRESETS,
    common={"What": ("data", "main", "pens"), "How long": ("steps",)},
)


def drawn(line):
    return parse(COMMAND, line.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("digits", {}),
        ("--data digits --main square", {"main": Square()}),
        ("digits --main square --square.side 3", {"main": Square(side=3.0)}),
        (
            "digits --square.corner_style=round --main square",
            {"main": Square(corner_style="round")},
        ),
        ("digits --circle.radius 3", {"main": Circle(radius=3.0)}),
        (
            "digits --pens chalk ink --ink.weight 2 --chalk.colours red blue",
            {"pens": (Chalk(colours=("red", "blue")), Ink(weight=2.0))},
        ),
        ("--pens ink --data digits", {"pens": (Ink(),)}),
        ("digits --no-tidy --mean 1 2 -3", {"tidy": False, "mean": (1.0, 2.0, -3.0)}),
        ("--steps 3 digits", {"steps": 3}),
    ],
)
def test_flags_make_the_configuration(line, expected):
    assert drawn(line) == Drawing(data="digits", **expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", {"main": Square(side=9.0), "pens": (Ink(weight=3.0),), "epochs": 4.0}),
        (
            "--square.corner-style round --steps 3",
            {
                "main": Square(side=9.0, corner_style="round"),
                "pens": (Ink(weight=3.0),),
                "steps": 3,
            },
        ),
        ("--main circle --pens --steps 3", {"steps": 3}),
        (
            "--main square --pens chalk ink --ink.weight 1 --epochs 1",
            {"main": Square(side=9.0), "pens": (Chalk(), Ink()), "epochs": 1.0},
        ),
    ],
)
def test_flags_win_over_a_preset_and_keep_what_they_do_not_name(line, expected):
    config = drawn(f"digits --preset big {line}")
    assert config == Drawing(data="digits", **expected)


def test_a_file_wins_over_a_preset_and_flags_over_both(tmp_path):
    file = tmp_path / "drawing.toml"
    file.write_text(
        'data = "digits"\nsteps = 2\n[main]\nname = "square"\nside = 1.5\n'
        '[[pens]]\nname = "chalk"\ncolours = ["red"]\n'
    )
    config = drawn(f"--preset big --config {file} --chalk.weight 9")
    assert config == Drawing(
        data="digits",
        main=Square(side=1.5),
        pens=(Chalk(weight=9.0, colours=("red",)),),
        steps=2,
    )


@pytest.mark.parametrize(
    "line",
    [
        "digits",
        "digits --preset big --pens ink chalk --chalk.colours a 'b' ü",
        "digits --main square --square.side 1e-7 --no-tidy --mean 1 2 3 --steps 7",
    ],
)
def test_printed_settings_make_the_same_configuration(line, tmp_path, capsys):
    expected = drawn(line)
    with pytest.raises(SystemExit) as ended:
        drawn(f"{line} --print-config")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    file = tmp_path / "drawing.toml"
    file.write_text(text)
    assert drawn(f"--config {file}") == expected
    plain = to_dict(expected)
    assert tomllib.loads(text)["main"] == plain["main"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("data = ", "not TOML"),
        ("\udcff", "not TOML"),
        ("stps = 3", "did you mean 'steps'"),
        ('main = {name = "squar"}', "did you mean 'square'"),
        ('main = {name = "square", sde = 1.0}', "did you mean 'side'"),
        ("main = {side = 1.0}", "name"),
        ("#" * 2**20 + "\n", "MiB"),
    ],
)
def test_a_file_that_cannot_be_is_one_sentence(tmp_path, content, said):
    file = tmp_path / "drawing.toml"
    file.write_bytes(os.fsencode(content))
    with pytest.raises(UserError, match=said):
        drawn(f"digits --config {file}")


def test_a_file_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "drawing.toml").write_text("")
    with pytest.raises(UserError, match=r"did you mean 'drawing\.toml'"):
        drawn(f"digits --config {tmp_path / 'drawin.toml'}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("digits --square.side 3", ["--square.side", "--main square"]),
        ("digits --ink.weight 3", ["--ink.weight", "ink to --pens"]),
        ("digits --side 3", ["--square.side", "--main square"]),
        ("digits --main square --square.sde 3", ["did you mean '--square.side'"]),
        ("digits --stpes 3", ["did you mean '--steps'"]),
        ("digits --main squre", ["did you mean 'square'"]),
        ("digits --main square --square.corner-style rund", ["did you mean 'round'"]),
        ("digits --preset bgi", ["did you mean 'big'"]),
        ("digits --steps many", ["--steps", "many"]),
        ("digits --mean 1 2", ["--mean", "3"]),
        ("--steps 3", ["--data"]),
        ("digits digits", ["2", "digits digits"]),
        ("digits --data digits", ["--data"]),
    ],
)
def test_mistakes_are_named_with_what_is_near(line, words):
    with pytest.raises(UserError) as caught:
        drawn(line)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("line", ["digits --qqq 3", "digits --main zzz"])
def test_nothing_is_offered_where_nothing_is_near(line):
    with pytest.raises(UserError) as caught:
        drawn(line)
    assert "did you mean" not in str(caught.value)


def helped(line, capsys):
    with pytest.raises(SystemExit) as ended:
        drawn(line)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_shows_common_flags_first_and_the_rest_when_asked(capsys):
    short, long = helped("--help", capsys), helped("--help-all", capsys)
    assert short.index("--data") < short.index("--main") < short.index("--steps")
    assert "(required)" in short
    assert "--epochs" not in short
    assert "--epochs" in long
    assert "--square.side" not in long


def test_help_of_a_choice_shows_its_settings_as_they_are_typed(capsys):
    text = " ".join(helped("--main square --help", capsys).split())
    assert "--square.side NUMBER" in text
    assert "metres. (default: 2.0)" in text
    assert "with --corner-style round" in text
    text = helped("--preset big --help", capsys)
    assert "--square.side 9.0" in text


def test_a_command_that_makes_a_choice_has_its_settings_without_a_prefix():
    command = dataclasses.replace(COMMAND, fixed={"main": "square", "pens": "ink"})
    expected = Drawing(
        data="digits", main=Square(side=4.0), pens=(Ink(weight=2.0), Chalk())
    )
    line = "digits --side 4 --pens chalk --weight 2"
    assert parse(command, line.split()) == expected
    with pytest.raises(UserError, match="--main"):
        parse(command, ["digits", "--main", "circle"])


def test_a_file_for_another_choice_is_not_for_this_command(tmp_path):
    file = tmp_path / "d.toml"
    file.write_text('main = "square"')
    command = dataclasses.replace(COMMAND, fixed={"main": "circle"})
    with pytest.raises(UserError, match="square"):
        parse(command, f"digits --config {file}".split())


def test_every_setting_of_something_by_name():
    text = settings_of("square", Square)
    assert "--square.side" in text
    assert "default: 2.0" in text


def test_flags_are_known_of_a_line_that_is_not_finished():
    names = {f.flag for f in flags_for(COMMAND, ["--main", "square", "--stp"])}
    assert "--square.side" in names
    assert "--circle.radius" not in names


@pytest.mark.parametrize(
    ("made", "spec"),
    [
        ("photos/", "folder:photos"),
        ("photos.zip", "zip:photos.zip"),
        ("photos.ZIP", "zip:photos.ZIP"),
        ("table.csv", "csv:table.csv"),
        ("arrays.npz", "npz:arrays.npz"),
    ],
)
def test_a_path_is_enough_for_data(made, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if made.endswith("/"):
        os.mkdir(made)
    else:
        (tmp_path / made).write_bytes(b"")
    assert drawn(made.rstrip("/")).data == spec
    assert drawn(f"--data {spec}").data == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("photo", "did you mean 'photos'"),
        ("dgits", "did you mean 'digits'"),
        ("notes.txt", "notes.txt"),
        ("nothing-near", "nothing-near"),
    ],
)
def test_data_that_is_nowhere_is_named(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("photos")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=said):
        drawn(text)


def test_a_preset_is_described_as_it_is_typed():
    text = PRESETS["big"].describe()
    flags = "--main square --square.side 9.0 --pens ink --ink.weight 3.0 --epochs 4.0"
    assert flags in text
