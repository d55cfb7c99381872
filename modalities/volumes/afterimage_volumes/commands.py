"""The commands `afterimage volume-…`: pretrain, finetune, predict."""

from collections.abc import Iterator
from typing import Any

from afterimage.commands.flags import Command, PackageCommand
from afterimage.fields import output_file
from afterimage.presets import Preset
from afterimage_volumes.config import FinetuneConfig, PredictConfig, PretrainConfig

PRESETS = {
    "two-cores": Preset(
        about="whole heads, coarsely, on a machine without an accelerator",
        command="afterimage volume-pretrain scans --preset two-cores --out runs/scans",
        settings={"size": 48, "spacing": 4.0, "width": 8, "steps": 300},
        cost="300 steps of 8 volumes of 48 x 48 x 48 voxels",
    )
}
_LONG = ("steps", "epochs", "batch_size", "eval_every", "lr", "weight_decay", "seed")


def _pretrain(config: PretrainConfig) -> str:
    from afterimage_volumes.pretraining import pretrain

    return pretrain(config).text


def _finetune(config: FinetuneConfig) -> str:
    from afterimage_volumes.finetuning import finetune

    return finetune(config).text


def _predict(config: PredictConfig) -> str:
    from afterimage.rows import WRITERS, write_table
    from afterimage_volumes.models import load_volume_classifier
    from afterimage_volumes.volumes import find

    output_file(config.out, WRITERS)  # before reading
    found, model = find(config.data), load_volume_classifier(config.from_)

    def rows() -> Iterator[dict[str, Any]]:
        for start in range(0, len(found.ids), 8):
            some = slice(start, start + 8)
            for name, p in zip(found.ids[some], model.predict_proba(found.paths[some])):
                yield {"volume": name, **model.outputs.columns(p, 3)}

    write_table(config.out, rows())
    return f"wrote {len(found.ids):,} rows to {config.out}"


PRETRAIN = PackageCommand(
    Command(
        name="volume-pretrain",
        kind="volume-pretrain",
        config=PretrainConfig,
        positional="data",
        presets=PRESETS,
        about="""\
Pretrain an encoder of volumes by rebuilding hidden blocks. The same command again
continues an interrupted run.

  afterimage volume-pretrain scans --preset two-cores --out runs/scans""",
        common={
            "What and where": ("data", "validation", "out"),
            "What the encoder sees": ("size", "spacing", "window", "flip"),
            "The network": ("width", "mask"),
            "How long, how fast": _LONG,
        },
    ),
    _pretrain,
)
FINETUNE = PackageCommand(
    Command(
        name="volume-finetune",
        kind="volume-finetune",
        config=FinetuneConfig,
        positional="data",
        about="""\
Train a classifier of volumes on a pretrained encoder, and test it once. The same
command again continues an interrupted run.

  afterimage volume-finetune scans.csv --from runs/scans --out runs/lesions""",
        common={
            "What and where": ("data", "from_", "out"),
            "Splits": ("test", "validation"),
            "What learns": ("mode", "encoder_lr", "flip"),
            "How long, how fast": _LONG,
        },
    ),
    _finetune,
)
PREDICT = PackageCommand(
    Command(
        name="volume-predict",
        config=PredictConfig,
        positional="data",
        about="""\
Write the class of every volume to a file.

  afterimage volume-predict new --from runs/lesions --out predictions.csv""",
        common={"Settings": ("data", "from_", "out")},
    ),
    _predict,
)
