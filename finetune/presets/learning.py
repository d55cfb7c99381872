"""Presets for several tasks: at once, one after another, or as episodes."""

from collections.abc import Mapping
from typing import Any

from afterimage.presets import Preset

_EPISODES: Mapping[str, Any] = {
    "mode": "full",
    "task": "episodes",
    "steps": 2_000,
    "weight_decay": 0.0,
}
# Prototypes keep the default rate: on training characters of Omniglot, 0.003 was better
# with five shots (95 against 94 %) and worse with one (62 against 73 %).
_MAML: Mapping[str, Any] = {"features": "grid", "lr": 3e-3}
# On 28 held-out training characters of Omniglot, 200 steps, seed 0, with one shot: two
# inner steps of 0.01 and three of 0.003 scored 77.8 %, one of 0.01 73.9 %, two of 0.03
# 72.4 %. With five shots, two steps of 0.03 were better: 90.4 against 86.7 %.
# Proto-MAML with one and five shots, two steps of 0.01: 84.8 and 92.9 %; one step, and
# five when scored: 85.5 and 89.3 %.
_STEPS: Mapping[str, Any] = {"name": "maml", "inner_steps": 2, "inner_lr": 0.01}
PRESETS: Mapping[str, Preset] = {
    "tasks": Preset(
        about="several tasks: conflicting gradients on the encoder are projected",
        command=(
            "afterimage finetune --preset tasks --from runs/photos "
            "--data csv:labels.csv --tasks.columns colour --out runs/tasks"
        ),
        settings={
            "mode": "two-phase",
            "methods": ({"name": "tasks", "weighting": "pcgrad"},),
        },
        cost="as two-phase, plus one backward pass per task",
    ),
    "tasks-uncertainty": Preset(
        about="several tasks with learned weights",
        command=(
            "afterimage finetune --preset tasks-uncertainty --from runs/photos "
            "--data csv:labels.csv --tasks.columns colour --out runs/tasks"
        ),
        settings={
            "mode": "two-phase",
            "methods": ({"name": "tasks", "weighting": "uncertainty"},),
        },
        cost="as two-phase",
    ),
    "replay": Preset(
        about="classes in groups, one after another; keeps some earlier images",
        command=(
            "afterimage continual --preset replay --from runs/photos --data "
            "folder:labelled --continual.sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={"mode": "full", "task": "continual", "methods": ("replay",)},
        cost="100 epochs, at least 300 steps of 64 + 64 images, divided over the tasks",
    ),
    "ewc": Preset(
        about="tasks one after another, a head for each; keeps no images",
        command=(
            "afterimage continual --preset ewc --from runs/photos --data "
            "folder:labelled --continual.sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={
            "mode": "full",
            "task": {"name": "continual", "scenario": "task"},
            "methods": ("ewc",),
            "weight_decay": 0.0,
        },
        cost="as full; two copies of the model, and 256 backward passes per task",
    ),
    "lwf": Preset(
        about="the same, by keeping the earlier model's predictions",
        command=(
            "afterimage continual --preset lwf --from runs/photos --data "
            "folder:labelled --continual.sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={
            "mode": "full",
            "task": {"name": "continual", "scenario": "task"},
            "methods": ("lwf",),
        },
        cost="as full, plus one forward pass per step",
    ),
    "maml": Preset(
        about="initial weights from which a few steps on a few images learn a class",
        command=(
            "afterimage episodes --preset maml --from runs/letters --data "
            "folder:letters --out runs/maml"
        ),
        settings={**_EPISODES, **_MAML, "methods": (_STEPS,)},
        cost="2,000 steps of 4 episodes: 640,000 images, each differentiated twice",
    ),
    "maml-tied": Preset(
        about="as maml, but all classes start with the same head weights",
        command=(
            "afterimage episodes --preset maml-tied --from runs/letters --data "
            "folder:letters --out runs/maml-tied"
        ),
        settings={**_EPISODES, **_MAML, "methods": ({**_STEPS, "tied_head": True},)},
        cost=(
            "2,000 steps of 4 episodes: 640,000 images, each differentiated twice; "
            "200 steps take 3 to 7 minutes on one CPU core"
        ),
        results="transfer.md#omniglot-5w1s",
    ),
    "anil": Preset(
        about="as maml, but only the head learns within an episode: cheaper",
        command=(
            "afterimage episodes --preset anil --from runs/letters --data "
            "folder:letters --out runs/anil"
        ),
        # MAML's rates; not tuned here.
        settings={**_EPISODES, **_MAML, "methods": ({**_STEPS, "only_head": True},)},
        cost="2,000 steps of 4 episodes: 640,000 images",
    ),
    "proto-maml": Preset(
        about="as maml, from the nearest mean of the few images: learns sooner",
        command=(
            "afterimage episodes --preset proto-maml --from runs/letters --data "
            "folder:letters --out runs/proto-maml"
        ),
        settings={**_EPISODES, **_MAML, "methods": ({**_STEPS, "name": "proto-maml"},)},
        cost=(
            "2,000 steps of 4 episodes: 640,000 images, each differentiated twice; "
            "200 steps take 6 to 10 minutes on one CPU core"
        ),
        results="transfer.md#omniglot-5w1s",
    ),
    "prototypical": Preset(
        about="features in which the mean of a few images represents their class",
        command=(
            "afterimage episodes --preset prototypical --from runs/letters --data "
            "folder:letters --out runs/prototypes"
        ),
        settings={**_EPISODES, "methods": ("prototypes",)},
        cost="2,000 steps of 4 episodes: 640,000 images",
    ),
    "reptile": Preset(
        about="as maml, without second derivatives: cheaper",
        command=(
            "afterimage episodes --preset reptile --from runs/letters --data "
            "folder:letters --out runs/reptile"
        ),
        settings={
            **_EPISODES,
            "methods": ({"name": "reptile", "inner_steps": 5, "inner_lr": 0.05},),
        },
        cost="2,000 steps of 4 episodes, 5 gradients each",
    ),
}
