"""Settings of fine-tuning, presets, and the command line."""

import json
import math

import pytest

from afterimage.commands.finetune import COMMAND
from afterimage.commands.flags import parse
from afterimage.errors import UserError
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.method import METHODS
from afterimage.finetune.methods.density_ratio import DensityRatio
from afterimage.finetune.methods.feature_selection import FeatureSelection
from afterimage.finetune.methods.jdot import JDOT
from afterimage.finetune.methods.kl_to_source import KLToSource
from afterimage.finetune.methods.l2_sp import L2SP
from afterimage.finetune.methods.mdan import MDAN
from afterimage.finetune.methods.sources import Sources
from afterimage.finetune.methods.tasks import Tasks
from afterimage.finetune.modes import Partial, Probe, TwoPhase
from afterimage.finetune.presets import PRESETS, preset_config
from afterimage.settings import from_dict, to_dict

NEEDED = {"from_": "runs/a", "out": "runs/b", "data": "digits"}
TARGET = {"target": "digits"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": 10, "labels_per_class": 1}, "labels and labels_per_class"),
        ({"labels": 0}, "labels=0"),
        ({"encoder_lr": 0.0}, "encoder_lr=0.0"),
        ({"mode": Probe(head_lr=-1.0)}, "probe.head_lr=-1.0"),
        ({"head_width": 8}, "head_width=8.*'mlp'"),
        ({"layer_decay": 1.5}, r"layer_decay=1.5: must be in \(0, 1\]"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"mode": "partial"}, "partial: give stages or unfreeze"),
        ({"mode": Partial(stages=0)}, "partial.stages=0"),
        (
            {"mode": {"name": "full", "stages": 1}},
            "mode full has no setting 'stages'",
        ),
        ({"mode": TwoPhase(head_steps=0)}, "two-phase.head_steps=0"),
        ({"mode": "ful"}, "mode 'ful' is unknown"),
        ({"mode": "probe", "layer_decay": 0.5}, "does not learn"),
        ({"mode": Partial(unfreeze=("(",))}, "not a valid regular expression"),
        ({"may_differ": ("[",)}, "not a valid regular expression"),
        ({"class_weights": "1,x"}, "class_weights='1,x'"),
        ({"class_weights": "1,-2"}, "class_weights='1,-2'"),
        ({"select": "validation", "validation": 0.0}, "validation greater than 0"),
        ({"keep_best": 0}, "keep_best=0"),
        ({"methods": "dann"}, "dann: needs images of the target domain"),
        ({"methods": "density-ratio"}, "needs images of the target domain"),
        ({"select": "entropy"}, "select='entropy'"),
        ({**TARGET, "methods": ("mmd", "mmd")}, "mmd may be given only once"),
        ({**TARGET, "methods": {"name": "mmd", "weight": 0.0}}, "mmd.weight=0.0"),
        ({**TARGET, "methods": JDOT(mass=0.0)}, "jdot.mass=0.0"),
        ({**TARGET, "methods": "mmd", "mode": "probe"}, "mmd: .*mode probe"),
        ({"methods": "l2-sp", "mode": "probe"}, "l2-sp: .*mode probe"),
        (
            {"methods": "kl-to-source", "mode": "scratch"},
            "kl-to-source: needs a source",
        ),
        ({"methods": L2SP(weight=0.0, fisher=True)}, "whose weight is 0"),
        ({"methods": L2SP(weight=-1.0)}, "l2-sp.weight=-1.0"),
        ({"methods": L2SP(weight=math.nan)}, "l2-sp.weight=nan"),
        ({"methods": KLToSource(temperature=0.0)}, "kl-to-source.temperature=0.0"),
        ({**TARGET, "methods": DensityRatio(cap=0.5)}, "density-ratio.cap=0.5"),
        (
            {**TARGET, "methods": "label-shift", "label_smoothing": 0.1},
            "label_smoothing to 0",
        ),
        ({"methods": "lwf"}, "lwf: .*task.*classification"),
        ({"domain_statistics": "joint"}, "domain_statistics='joint'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"methods": FeatureSelection(keep=0)}, "feature-selection.keep=0"),
        (
            {"methods": "feature-selection", "mode": "scratch"},
            "has no features to score",
        ),
        ({"methods": Tasks(columns=("a",), weights=(1.0,))}, "must have 2 numbers"),
        ({"methods": Tasks(weighting="pcgrad")}, "tasks: columns: give"),
        (
            {
                "methods": Tasks(
                    columns=("a",), weights=(1.0, 2.0), weighting="uncertainty"
                )
            },
            "learns them",
        ),
        ({"methods": Tasks(columns=("a", "a"))}, r"columns=\('a', 'a'\)"),
        ({"methods": Tasks(columns=("classes",))}, "'classes' cannot be the name"),
        ({"methods": Tasks(columns=("a/b",))}, "'a/b' cannot be the name"),
        (
            {"methods": Sources(images=("npz:a",), weights=(1.0,))},
            "must have 2 numbers",
        ),
        (
            {"methods": Sources(images=("npz:a",), weights=(0.0, 1.0))},
            r"weights=\(0.0, 1.0\)",
        ),
        ({"methods": Sources(images=("digits",))}, "data='digits'"),
        ({"methods": MDAN(gamma=0.0)}, "mdan.gamma=0.0"),
        ({**TARGET, "methods": "mdan"}, "needs several sources"),
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
    """Each is a run once it has the data it is for; the rest is as the preset says."""
    given = PRESETS[name].settings
    names = [m if isinstance(m, str) else m["name"] for m in given.get("methods", ())]
    needed = {"sources": {"sources.images": ("npz:a",)}}
    needed |= {"tasks": {"tasks.columns": ("colour",)}}
    needed |= {"distil": {"distil.teacher": "runs/cls"}}
    more = {k: v for method in names for k, v in needed.get(method, {}).items()}
    groups = {METHODS.get(method).group for method in names}
    if "target" in groups or "adapt" in name:
        more |= TARGET
    if "continual" in str(given.get("task")):
        more["continual.sequence"] = ("0,1", "2,3")
    config = preset_config(name, **NEEDED, **more)
    for field, value in given.items():
        if field not in {*NEEDED, "mode", "task", "methods"}:
            assert getattr(config, field) == value
    assert [method.name for method in config.methods] == names
    again = from_dict(FinetuneConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config


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
        "--from runs/photos --data folder:labelled --out runs/cls "
        "--labels-per-class 10 --lr 0.01"
    )
    config = parse(COMMAND, line.split())
    assert config == FinetuneConfig(
        from_="runs/photos",
        data="folder:labelled",
        out="runs/cls",
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
