"""Settings, presets and the command line that makes them."""

import dataclasses

import numpy as np
import pytest

from afterimage.checkpoints.errors import RunLocked
from afterimage.commands import exit_code
from afterimage.commands.flags import parse
from afterimage.commands.pretrain import COMMAND
from afterimage.errors import Diverged, UserError
from afterimage.presets import Preset
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.objectives.masked import Masked
from afterimage.pretrain.objectives.plain import Plain
from afterimage.pretrain.presets import PRESETS, preset_config
from afterimage.pretrain.run import pretrain
from afterimage.settings import field_documents, from_dict, to_dict
from afterimage.training.options import DataOptions


def parsed(*argv):
    return parse(COMMAND, argv)


def test_every_mistake_is_reported_at_once():
    with pytest.raises(UserError) as caught:
        PretrainConfig(
            data="digits",
            out="x",
            lr=0.0,
            image_size=4,
            objective={
                "name": "plain",
                "loss": "bce",
                "target": "image",
                "corruption_strength": 2.0,
            },
            probe_k=0,
            pictures=-1,
            eval_every=0,
        )
    text = str(caught.value)
    for part in (
        "lr=0.0",
        "image_size=4",
        "target='image'",
        "needs a corruption",
        "probe_k=0",
        "pictures=-1",
        "eval_every=0",
    ):
        assert part in text


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        PretrainConfig(data="digits", out="x", model="resnet19")


@pytest.mark.parametrize(
    "objective",
    ["masked", {"name": "masked", "ratio": 0.6}, Masked(ratio=0.6)],
    ids=["name", "mapping", "instance"],
)
def test_an_objective_is_a_name_a_mapping_or_an_instance(objective):
    config = PretrainConfig(data="digits", out="x", objective=objective)
    assert config.objective == Masked(ratio=0.6)
    assert from_dict(PretrainConfig, to_dict(config)) == config


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_valid_described_and_runnable_as_typed(name):
    preset = PRESETS[name]
    config = preset_config(name, data="digits", out="x")
    values = to_dict(config)
    for field, value in preset.settings.items():
        if field == "objective":
            named = {"name": value} if isinstance(value, str) else value
            assert values[field] | named == values[field]
        elif field != "data":
            assert values[field] == value
    assert len(preset.about) <= 70
    program, stage, *argv = preset.command.split()
    assert (program, stage) == ("afterimage", "pretrain")
    typed = parsed(*argv)
    for field in preset.settings.keys() - {"data"}:
        assert getattr(typed, field) == getattr(config, field)


@pytest.mark.slow
def test_the_preset_of_accelerators_trains_with_a_narrow_network(tmp_path):
    small = {"width": 0.125, "epochs": None, "steps": 2, "batch_size": 8, "devices": 1}
    small |= {"probe_images": 0, "pictures": 0, "tensorboard": False}
    config = preset_config(
        "cifar-contrastive", data="synthetic:32x32x3", out=str(tmp_path), **small
    )
    assert (config.normalise, config.lr) == ("image", 2e-3)
    result = pretrain(config)
    assert result.steps == 2
    assert np.isfinite(result.metrics["embedding"])


def test_settings_beside_a_preset_win_wherever_they_stand():
    config = parsed("--lr", "0.5", "--preset", "digits", "--out", "x", "--steps", "7")
    assert (config.lr, config.steps, config.data) == (0.5, 7, "digits")
    assert config.objective.corruption == "erasing"
    assert parsed("--preset=digits", "--out", "x").model == "conv"


def test_flags_reach_every_field_with_its_type():
    line = (
        "--data folder:a --out b --image-size 64 --channels 3 --epochs 1.5 --ema 0.9 "
        "--no-tensorboard --no-resident --bottleneck 32 --norm group "
        "--plain.corruption erasing --plain.corruption-strength 0.3"
    )
    config = parsed(*line.split())
    assert config == PretrainConfig(
        data="folder:a",
        out="b",
        image_size=64,
        channels=3,
        epochs=1.5,
        ema=0.9,
        tensorboard=False,
        resident=False,
        bottleneck=32,
        norm="group",
        objective=Plain(corruption="erasing", corruption_strength=0.3),
    )


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'digits'"):
        parsed("--preset", "digts")
    with pytest.raises(UserError, match="There are: digits, small-images"):
        parsed("--preset")


def test_settings_that_cannot_work_are_our_error_not_the_parsers():
    with pytest.raises(UserError, match=r"lr=0\.0"):
        parsed("--data", "digits", "--out", "x", "--lr", "0")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--data", "digits", "--out", "x", "--lrr", "1"), ["--lrr", "--lr"]),
        (("--data", "digits"), ["--out"]),
        (("--data", "d", "--out", "x", "--steps", "many"), ["--steps", "many"]),
        (("--data", "d", "--out", "x", "--plain.loss", "mae"), ["loss", "huber"]),
    ],
)
def test_flags_that_do_not_parse_are_named(argv, words):
    with pytest.raises(UserError) as caught:
        parsed(*argv)
    for word in words:
        assert word in str(caught.value)


def test_preset_help_shows_it_in_full_and_its_defaults(capsys):
    with pytest.raises(SystemExit):
        parsed("--preset", "digits", "--help")
    shown = capsys.readouterr().out
    assert "900 steps of 128" in shown
    assert "0.004)" in shown


def test_a_preset_says_where_its_results_are():
    preset = Preset(
        about="a",
        command="c",
        settings={"cache": False, "lr": 0.1},
        cost="5 steps",
        results="demo.md#digits",
    )
    text = preset.describe()
    assert "benchmarks/results/demo.md#digits" in text
    assert "--no-cache --lr 0.1" in text


def test_every_field_is_documented():
    documents = field_documents(PretrainConfig)
    assert {f.name for f in dataclasses.fields(PretrainConfig)} <= set(documents)
    assert all(documents.values())
    assert "\n" not in field_documents(DataOptions)["data"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("bad"), 2), (RunLocked("busy"), 2), (Diverged("nan"), 4)],
)
def test_errors_end_commands_with_their_code_and_message(error, code, capsys):
    def command():
        raise error

    assert exit_code(command) == code
    assert capsys.readouterr().err == f"{error}\n"
    assert exit_code(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0)


def test_steps_beside_a_preset_win_over_its_epochs():
    arguments = ("--preset", "small-images", "--data", "digits", "--out", "x")
    config = parsed(*arguments, "--steps", "7")
    assert (config.steps, config.epochs) == (7, None)
