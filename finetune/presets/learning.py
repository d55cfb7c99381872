"""Presets for several tasks: at once, one after another, or as episodes."""

from collections.abc import Mapping
from typing import Any

from afterimage.presets import Measured, Preset

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
        about="several tasks on one encoder, their conflicting gradients projected",
        command=(
            "afterimage finetune --preset tasks --from runs/photos "
            "--data csv:labels.csv --tasks.columns colour --out runs/tasks"
        ),
        settings={
            "mode": "two-phase",
            "methods": ({"name": "tasks", "weighting": "pcgrad"},),
        },
        cost="as two-phase, and one more backward pass a task",
    ),
    "tasks-uncertainty": Preset(
        about="several tasks on one encoder, each task's weight learned",
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
        about="classes that come one group after the other: some earlier images again",
        command=(
            "afterimage continual --preset replay --from runs/photos --data "
            "folder:labelled --continual.sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={"mode": "full", "task": "continual", "methods": ("replay",)},
        cost="100 epochs, at least 300 steps of 64 + 64 images, shared by the tasks",
    ),
    "ewc": Preset(
        about="tasks one after the other, a head each, without keeping images",
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
        cost="as full, two copies of the model, 256 backward passes a task",
    ),
    "lwf": Preset(
        about="the same by keeping the earlier model's predictions on new images",
        command=(
            "afterimage continual --preset lwf --from runs/photos --data "
            "folder:labelled --continual.sequence cat,dog car,ship --out runs/sequence"
        ),
        settings={
            "mode": "full",
            "task": {"name": "continual", "scenario": "task"},
            "methods": ("lwf",),
        },
        cost="as full, and one more forward pass a step",
    ),
    "maml": Preset(
        about="a start from which a few steps on a few images learn new classes",
        command=(
            "afterimage episodes --preset maml --from runs/letters --data "
            "folder:letters --out runs/maml"
        ),
        settings={**_EPISODES, **_MAML, "methods": (_STEPS,)},
        cost="2,000 steps of 4 episodes: 640,000 images, each differentiated twice",
    ),
    "maml-tied": Preset(
        about="as maml, but every episode starts with the same head for each class",
        command=(
            "afterimage episodes --preset maml-tied --from runs/letters --data "
            "folder:letters --out runs/maml-tied"
        ),
        settings={**_EPISODES, **_MAML, "methods": ({**_STEPS, "tied_head": True},)},
        cost="2,000 steps of 4 episodes: 640,000 images, each differentiated twice",
        measured=(
            Measured(
                result=(
                    "200 steps, five alphabets of Omniglot, 5 ways, 1 shot: 77.2 ± "
                    "6.0 % on characters held out (prototypes 73.0 ± 5.0); 5 shots and "
                    "--maml.inner-lr 0.03: 91.8 ± 0.2 % (92.1 ± 0.5), 3 seeds"
                ),
                time="3 minutes a seed; 5 shots: 7",
                device="one core of an AMD EPYC, beside other work",
                date="2026-11-27",
            ),
        ),
    ),
    "anil": Preset(
        about="as maml, but only the head takes the steps: cheaper a step",
        command=(
            "afterimage episodes --preset anil --from runs/letters --data "
            "folder:letters --out runs/anil"
        ),
        # MAML's rates; not tuned here.
        settings={**_EPISODES, **_MAML, "methods": ({**_STEPS, "only_head": True},)},
        cost="2,000 steps of 4 episodes: 640,000 images",
    ),
    "proto-maml": Preset(
        about="the same from the nearest mean of the few images: learns much sooner",
        command=(
            "afterimage episodes --preset proto-maml --from runs/letters --data "
            "folder:letters --out runs/proto-maml"
        ),
        settings={**_EPISODES, **_MAML, "methods": ({**_STEPS, "name": "proto-maml"},)},
        cost="2,000 steps of 4 episodes: 640,000 images, each differentiated twice",
        measured=(
            Measured(
                result=(
                    "200 steps, five alphabets of Omniglot, 5 ways, 5 shots: 95.1 ± "
                    "0.7 % on characters held out (prototypes 92.1 ± 0.5); 1 shot: "
                    "87.3 ± 1.7 % (73.0 ± 5.0), 3 seeds"
                ),
                time="10 minutes a seed; 1 shot: 6",
                device="one core of an AMD EPYC, beside other work",
                date="2026-11-27",
            ),
        ),
    ),
    "prototypical": Preset(
        about="features in which the mean of a few images stands for their class",
        command=(
            "afterimage episodes --preset prototypical --from runs/letters --data "
            "folder:letters --out runs/prototypes"
        ),
        settings={**_EPISODES, "methods": ("prototypes",)},
        cost="2,000 steps of 4 episodes: 640,000 images",
    ),
    "reptile": Preset(
        about="as maml, without its derivatives: cheaper a step",
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
