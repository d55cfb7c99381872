"""Settings: no number, place or spec of data ends in anything but a sentence."""

import contextlib
import dataclasses
import math
import subprocess
import sys
import typing

import pytest

from afterimage.commands.checkpoints import Prune, Show
from afterimage.commands.import_ import Import
from afterimage.errors import UserError
from afterimage.evaluation.configs import EvaluateConfig, FeaturesConfig
from afterimage.fields import field_problems, place_problems, spec_problems
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.select_config import SelectConfig
from afterimage.pretrain.config import PretrainConfig
from afterimage.training.options import TrainingOptions
from tests.helpers import environment, run_python

WORKING = {
    PretrainConfig: {"data": "digits", "out": "run"},
    FinetuneConfig: {"data": "digits", "out": "run", "from_": "source"},
    FeaturesConfig: {"data": "digits", "out": "x.npy", "from_": "source"},
    EvaluateConfig: {"data": "digits", "from_": "source"},
    SelectConfig: {"data": "digits", "from_": ("a", "b", "c")},
}
COMMANDS = {
    Prune: {"run": "run"},
    Show: {"run": "run"},
    Import: {"file": "x.pth", "model": "resnet18", "out": "run"},
}


def arguments_of(hint):
    return [argument for argument in typing.get_args(hint) if argument is not ...]


def fields_of(*kinds):
    """Every field whose hint names a kind: its class, and its length as a tuple."""
    found = []
    for config, usual in (WORKING | COMMANDS).items():
        for name, hint in typing.get_type_hints(config).items():
            if {hint, *arguments_of(hint)} & set(kinds):
                is_tuple = typing.get_origin(hint) is tuple
                case = config, usual, name, is_tuple * len(arguments_of(hint))
                found.append(pytest.param(*case, id=f"{config.__name__}.{name}"))
    return found


def made(config, usual, name, value):
    """Makes the configuration, as its command does."""
    given = config(**{**usual, name: value})
    found = field_problems(given)
    if found:
        raise UserError("\n".join(found))
    return given


NEVER = {
    int: [2**63, -(2**63), 10**5000],
    float: [math.nan, math.inf, -math.inf, 1e300],
}
OTHER_TYPES = {int: [math.nan, math.inf, 1e30, 0.5, "5", True], float: ["5", True]}


@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize(("config", "usual", "name", "length"), fields_of(int, float))
def test_every_number_is_taken_or_refused_by_its_name(
    config, usual, name, length, kind
):
    hint = typing.get_type_hints(config)[name]
    if kind not in {hint, *typing.get_args(hint)}:
        return
    for value in NEVER[kind]:
        with pytest.raises(UserError, match=f"^(.*\n)*.*{name.rstrip('_')}="):
            made(config, usual, name, (value,) * length if length else value)
    for value in (-1, 0, 1, 7, 2**31 - 1):
        value = kind(value)
        # Accepted, or refused; never another exception.
        with contextlib.suppress(UserError):
            made(config, usual, name, (value,) * length if length else value)


def other_types():
    """What the next test asserts, where no test tool checks the types first."""
    for kind, values in OTHER_TYPES.items():
        for case in fields_of(kind):
            config, usual, name, length = case.values
            for value in values:
                with pytest.raises(UserError, match=f"{name.rstrip('_')}="):
                    made(config, usual, name, (value,) * length if length else value)


def test_numbers_of_another_type_are_refused_by_their_name():
    run_python("from tests.test_fields import other_types; other_types()")


PLACES = ["", " ", "a\0b", "x" * 300, "gs://", "s3:/bucket/x", "hdfs://h/x"]


@pytest.mark.parametrize("value", PLACES)
@pytest.mark.parametrize(
    ("config", "usual", "name", "length"),
    [
        case
        for case in fields_of(str)
        if case.values[2].rstrip("_")
        in {"out", "from", "data", "teacher", "target", "unlabelled", "sources"}
        | {"against", "encoder", "run", "file"}
    ],
)
def test_every_place_that_cannot_be_is_refused_by_its_name(
    config, usual, name, length, value
):
    with pytest.raises(UserError, match=f"{name.rstrip('_')}="):
        made(config, usual, name, (value, "b", "c") if length else value)


@pytest.mark.parametrize("value", ["~/x", "~nobody", "x/" * 3000])
def test_a_folder_of_a_run_has_a_plain_name(value):
    assert "out=" in place_problems("out", value)[0]


@pytest.mark.parametrize("value", [".", "..", "/", "./", "a/..", "./~x", "zoë", "a b"])
def test_names_that_a_folder_may_have(value):
    assert place_problems("out", value) == []


@pytest.mark.parametrize(
    "spec",
    [
        "folder:/a/b",
        "folder:.",
        "folder:~/x",
        "folder:///a/b",
        "zip:a.zip,b.zip",
        "digits",
        "tfds:mnist:3.*.*",
    ],
)
def test_specs_of_this_machine_are_taken(spec):
    assert spec_problems("data", spec) == []


@pytest.mark.parametrize(
    "spec", ["folder:hdfs://b/x", "zip:a.zip,ftp://b/c.zip", "https://x.org/a.zip"]
)
def test_specs_of_other_machines_are_refused(spec):
    assert "not supported" in spec_problems("data", spec)[0]


@pytest.mark.parametrize(
    "spec", ["folder:gs://b/x", "zip:a.zip,s3://b/c.zip", "s3://b/x.csv"]
)
def test_specs_of_buckets_are_taken(spec):
    assert spec_problems("data", spec) == []


def test_runs_may_be_in_a_bucket_and_files_of_results_not():
    assert place_problems("from", "s3://b/runs/a", remote=True) == []
    assert "path on this machine" in place_problems("out", "s3://b/x.csv")[0]


def test_epochs_without_an_end_are_refused():
    with pytest.raises(UserError, match="epochs="):
        TrainingOptions(epochs=1e29).total_steps(1000)


def test_defaults_have_no_problems():
    for config, usual in WORKING.items():
        assert field_problems(config(**usual)) == []
        names = {field.name for field in dataclasses.fields(config)}
        assert names >= set(usual)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_remote_run_folder_is_refused_before_anything_is_made(tmp_path, command):
    more = ["--from", "x"] if command == "finetune" else []
    settings = ["--data", "folder:none", "--out", "hdfs://h/run", *more]
    done = subprocess.run(
        [sys.executable, "-m", "afterimage", command, *settings],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "hdfs://" in done.stderr
    assert list(tmp_path.iterdir()) == []
