"""Settings of fine-tuning, presets, and the command line."""

import pytest

from afterimage.commands.finetune import COMMAND
from afterimage.commands.flags import parse
from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.presets import PRESETS, preset_config

NEEDED = {"from_": "runs/a", "out": "runs/b", "data": "digits"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 10, "labels_per_class": 1}, "give one of them"),
        ({"labels": 0}, "labels=0"),
        ({"encoder_lr": 0.0}, "encoder_lr=0.0"),
        ({"head_lr": -1.0}, "head_lr=-1.0"),
        ({"head_width": 8}, "only with head='mlp'"),
        ({"layer_decay": 1.5}, r"layer_decay=1.5: in \(0, 1\]"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"mode": "partial"}, "what thaws"),
        ({"mode": "full", "unfreeze_stages": 1}, "not in mode='full'"),
        ({"mode": "full", "head_steps": 5}, "only in mode='two-phase'"),
        ({"mode": "full", "head_lr": 0.1}, "only where the head learns alone"),
        ({"mode": "probe", "layer_decay": 0.5}, "does not learn"),
        ({"mode": "partial", "unfreeze": ("(",)}, "not a regular expression"),
        ({"may_differ": ("[",)}, "not a regular expression"),
        ({"class_weights": "1,x"}, "numbers from 0"),
        ({"class_weights": "1,-2"}, "numbers from 0"),
        ({"select": "validation", "validation": 0.0}, "needs validation above 0"),
        ({"keep_best": 0}, "best step would be deleted"),
        ({"align": ("dann",)}, "needs images of the target domain"),
        ({"density_ratio": "kmm"}, "needs images of the target domain"),
        ({"select": "entropy"}, "looks at a target"),
        ({"target": "digits", "align": ("mmd", "mmd")}, "each method once"),
        ({"target": "digits", "align_weight": (1.0,)}, "1 numbers for 0 methods"),
        ({"target": "digits", "align": ("jdot",), "jdot_mass": 0.0}, "jdot_mass=0.0"),
        ({"target": "digits", "jdot_mass": 0.7}, "is of jdot"),
        ({"target": "digits", "align": ("mmd",), "mode": "probe"}, "align: a probe's"),
        ({"l2_sp": 0.1, "mode": "probe"}, "l2_sp: a probe's encoder"),
        ({"kl": 0.1, "mode": "scratch"}, "has no source to stay near"),
        ({"l2_sp_fisher": True}, "which is 0"),
        ({"l2_sp": -1.0}, "l2_sp=-1.0"),
        ({"kl_temperature": 0.0}, "kl_temperature=0.0"),
        ({"density_cap": 0.5}, "density_cap=0.5"),
        (
            {"target": "digits", "label_shift": "em", "label_smoothing": 0.1},
            "leave label_smoothing",
        ),
        ({"batch_size": 0}, "batch_size=0"),
        ({"feature_selection": "l1"}, "give both, or none"),
        ({"keep_features": 0, "feature_selection": "l1"}, "keep_features=0"),
        (
            {"feature_selection": "l1", "keep_features": 3, "mode": "scratch"},
            "has no features to score",
        ),
        ({"tasks": ("a",), "task_weights": (1.0,)}, "1 numbers for 2 tasks"),
        ({"task_weighting": "pcgrad"}, "need further tasks: give tasks"),
        (
            {
                "tasks": ("a",),
                "task_weights": (1.0, 2.0),
                "task_weighting": "uncertainty",
            },
            "learns them",
        ),
        ({"tasks": ("a", "a")}, "each name once"),
        ({"tasks": ("classes",)}, "'classes' cannot be a name"),
        ({"tasks": ("a/b",)}, "'a/b' cannot be a name"),
        ({"sources": ("npz:a",), "source_weights": (1.0,)}, "1 numbers for 2 sources"),
        ({"source_weights": (0.0,)}, "more than 0"),
        ({"sources": ("digits",)}, "sources=.'digits',.: each once"),
        ({"mdan_gamma": 0.0}, "mdan_gamma=0.0"),
        ({"target": "digits", "align": ("mdan",)}, "needs several sources"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(UserError, match=message):
        FinetuneConfig(**NEEDED, **settings)


def test_all_mistakes_at_once():
    with pytest.raises(UserError) as caught:
        FinetuneConfig(**NEEDED, lr=0.0, labels=0, class_weights="many", steps=0)
    for part in ("lr=0.0", "labels=0", "class_weights='many'", "steps=0"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_work(name):
    given = PRESETS[name].settings
    adapts = {"align", "density_ratio", "label_shift"} & set(given)
    adapts = adapts or given.get("unlabelled") == "target"
    needed = {"target": "digits"} if adapts else {}
    needed |= {"sources": ("npz:a",)} if "mdan" in given.get("align", ()) else {}
    needed |= {"tasks": ("colour",)} if "task_weighting" in given else {}
    needed |= {"teacher": "runs/cls"} if "distil" in given else {}
    needed |= {"sequence": ("0,1", "2,3")} if "continual" in given else {}
    config = preset_config(name, **NEEDED, **needed)
    for field, value in PRESETS[name].settings.items():
        if field not in NEEDED:
            assert getattr(config, field) == value


@pytest.mark.parametrize(
    ("settings", "images", "steps"),
    [
        ({}, 100, 300),  # 100 epochs of 100 images by 64 are 156 steps: too few
        ({}, 1000, 1562),
        ({}, 10**6, 20_000),
        ({"steps": 7}, 100, 7),
        ({"epochs": 2.0}, 640, 20),
    ],
)
def test_steps(settings, images, steps):
    assert FinetuneConfig(**NEEDED, **settings).total_steps(images) == steps


def test_command_line():
    line = (
        "--from runs/photos --data folder:labelled --out runs/cls --mode partial "
        "--unfreeze ^encoder/stages/2/ norm --labels-per-class 10 --lr 0.01"
    )
    config = parse(COMMAND, line.split())
    assert config == FinetuneConfig(
        from_="runs/photos",
        data="folder:labelled",
        out="runs/cls",
        mode="partial",
        unfreeze=("^encoder/stages/2/", "norm"),
        labels_per_class=10,
        lr=0.01,
    )
    line = "--preset digits --from a --out b --steps 9"
    config = parse(COMMAND, line.split())
    assert (config.data, config.steps, config.batch_size) == ("digits", 9, 64)


def test_help_reads_like_documentation(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(COMMAND, ["--help-all"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--from", "--layer-decay", "few-labels", "--seed", "The pretrained"):
        assert word in shown
