"""The TFDS builder of `digits`; importing it loads TFDS, so it is imported late."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from afterimage.data.sets import stratified

TEST_FRACTION = 0.2
NAMES = tuple(str(digit) for digit in range(10))


class AfterimageDigits(tfds.core.GeneratorBasedBuilder):
    """scikit-learn's digits, grey levels scaled to 0..255; a fixed test split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=list(NAMES)),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits

        data: Any = load_digits()
        levels = data.images.astype(np.uint16)
        images = ((levels * 255 + 8) // 16).astype(np.uint8)[..., None]
        parts = stratified(data.target, len(images), TEST_FRACTION, seed=0)
        for row in parts[test]:
            yield (
                int(row),
                {
                    "id": f"digits/{row:04d}",
                    "image": images[row],
                    "label": int(data.target[row]),
                },
            )
