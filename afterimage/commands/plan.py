"""`afterimage plan`."""

from collections.abc import Sequence

from afterimage.commands.flags import Command, parse
from afterimage.console import say
from afterimage.pretrain.plan_config import PlanConfig

COMMAND = Command(
    name="plan",
    config=PlanConfig,
    positional="devices",
    about="""\
What pretraining needs of devices that need not be there: memory, FLOPs, the largest
batch, and a bound on images/s. The run's own step is compiled for them, which takes
minutes; no data are read. TPUs need the extra [plan-tpu], GPUs [plan-cuda].

  afterimage plan --preset photos-224 --devices h100:8
  afterimage plan --preset photos-224 --devices tpu-v5e:16 --search all""",
    common={
        "What and where": ("preset", "devices", "batch_size", "image_size", "channels"),
        "The run": (
            *(
                "from_",
                "model",
                "objective",
                "augment",
                "view_size",
                "decoder",
                "width",
            ),
            *("precision", "accumulate", "remat", "shard_parameters", "images"),
        ),
        "What to find": ("search", "measure"),
    },
)


def main(argv: Sequence[str]) -> None:
    """Parses, compiles, prints."""
    config = parse(COMMAND, argv)
    from afterimage.pretrain.plan import make_plan
    from afterimage.pretrain.plan_text import plan_text

    say(plan_text(make_plan(config)))
