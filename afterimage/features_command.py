"""`afterimage features --from RUN --data SPEC --out FILE`."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from afterimage.checkpoints.names import spelling
from afterimage.cli import parse
from afterimage.data import ImageSet, Splits, open_data
from afterimage.data.preprocessing import Preprocessing
from afterimage.errors import DataError, UserError
from afterimage.fields import field_problems
from afterimage.reading import ReadingOptions
from afterimage.training.options import check

if TYPE_CHECKING:
    from afterimage.evaluate_command import EvaluateConfig

DESCRIPTION = """The feature vector of every image, into a file.

  afterimage features --from runs/photos --data folder:photos --out features.parquet"""

Split = Literal["all", "train", "validation", "test"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesConfig(ReadingOptions):
    """Images to vectors, into a file."""

    from_: str
    """The encoder: a run folder, one of its checkpoints/STEP, or an encoder/ folder."""

    data: str
    """Where the images are: digits, folder:PATH, zip:PATH[,PATH], csv:PATH, npz:PATH,
    tfds:NAME, synthetic:HxWxC."""

    out: str
    """The file to write: .parquet (split, id, label and class where known, vector),
    .npz (the same as arrays) or .npy (vectors alone)."""

    split: Split = "all"
    """Which images: all, or those of one split."""

    pool: Literal["vector", "last", "pyramid", "grid", "grid-3", "pyramid-grid"] = (
        "vector"
    )
    """What of the maps is the vector. vector: the bottleneck, or as last. last: the
    mean of the last map. pyramid: the means of all maps, joined. grid, pyramid-grid:
    the same with the means of a 2x2 grid; grid-3: of a 3x3 one."""

    views: Literal["none", "flip", "shift", "shift-flip"] = "none"
    """The mean of the vectors of several views of each image. flip: mirrored left to
    right, 2 views; shift: moved by a twenty-eighth of its sides each way, 9;
    shift-flip: both, 18. So many times the work."""

    batch_size: int = 256
    """Images that go through the network together."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; features are stored as float32."""

    on_bad_image: Literal["fail", "skip"] = "fail"
    """What to do with a broken image: stop and name it, or skip and count it."""

    cache: bool = True
    """Keep decoded images of folders and archives on disk for the next pass."""

    def __post_init__(self):
        check(field_problems(self))
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: at least 1")


def features(config: FeaturesConfig) -> int:
    """Write the file that `config` asks for; the number of its rows."""
    from afterimage.encoder import load_encoder
    from afterimage.export import check_place, export_features

    check_place(config.out)  # before hours of work
    encoder = load_encoder(config.from_, dtype=config.dtype)
    splits = open_for(encoder.preprocessing, config)
    chosen = select(splits, config.split, config.data)
    report_skipped(chosen)
    return export_features(
        encoder,
        chosen,
        config.out,
        pool=config.pool,
        views=config.views,
        batch_size=config.batch_size,
    )


def open_for(
    preprocessing: Preprocessing, config: "FeaturesConfig | EvaluateConfig"
) -> Splits:
    """The data at the encoder's size and channels, as far as the source can."""
    height, width = preprocessing.image_size
    return open_data(
        config.data,
        image_size=height if height == width else None,
        channels=preprocessing.channels,
        value_range=preprocessing.value_range,
        on_bad_image=config.on_bad_image,
        cache=config.cache,
        reading=config,
    )


def select(splits: Splits, split: Split, data: str) -> dict[str, ImageSet]:
    """{name: images} of the split asked for; DataError where the data lacks it."""
    present = {
        field.name: images
        for field in dataclasses.fields(splits)
        if (images := getattr(splits, field.name)) is not None
    }
    if split == "all":
        return present
    if split not in present:
        raise DataError(
            f"{data} has no {split} split; it has {', '.join(present)}. "
            "Take one of these, or all."
        )
    return {split: present[split]}


def report_skipped(sets: dict[str, ImageSet]) -> None:
    """Name on standard error the images that were left out."""
    bad = list(dict.fromkeys(b for images in sets.values() for b in images.skipped))
    for image in bad:
        print(f"skipped {image.path}: {image.reason}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} images were skipped", file=sys.stderr)


def main(argv: Sequence[str], *, prog: str = "afterimage features") -> None:
    """Parses, writes, says how many."""
    config = parse(FeaturesConfig, {}, argv, prog=prog, description=DESCRIPTION)
    count = features(config)
    print(f"{count} feature vectors in {spelling(config.out)}")
