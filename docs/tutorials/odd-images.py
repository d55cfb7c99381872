# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Odd images
#
# A broken camera, a wrong file, something you did not expect: which images are unlike
# the others? An encoder answers without any label: its features of an odd image are
# unlike those of normal ones.

# %%
import os
import pathlib
import tempfile

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from afterimage.data import open_data

os.chdir(tempfile.mkdtemp())

# %% [markdown]
# ## Images
#
# We train on letters and digits in handwriting fonts. The new images are about 200 in
# other fonts, a photo of a flower, the negative of a character, and a damaged one.

# %%
characters = open_data("characters")
np.savez("normal.npz", images=characters.train.gather(range(len(characters.train))))

new = characters.test.gather(range(0, len(characters.test), 9))[..., 0]
photo = Image.fromarray(load_sample_image("flower.jpg")).convert("L").resize((28, 28))
damaged = new[50].copy()
damaged[8:20] = np.random.default_rng(0).integers(0, 256, (12, 28))
odd = {"flower": np.asarray(photo), "negative": 255 - new[80], "damaged": damaged}
pathlib.Path("new").mkdir()
for name, image in [*enumerate(new), *odd.items()]:
    Image.fromarray(image).save(f"new/{name}.png")

# %% [markdown]
# ## Pretrain, without labels

# %% language="bash"
# set -o pipefail
# afterimage pretrain normal.npz --out runs/encoder --steps 100 2>&1 | tail -3

# %% [markdown]
# ## Score
#
# Nothing is labelled: the training images say what is normal. The threshold is set so
# that about one normal image in a hundred is a false alarm.

# %% language="bash"
# afterimage anomalies new --from runs/encoder --normal normal.npz --out scores.csv \
#   --sheet highest.png

# %%
Image.open("highest.png")

# %% [markdown]
# The heat maps on the right say where an image is unusual. In Python:

# %%
import afterimage

detector = afterimage.AnomalyDetector.load("runs/encoder")
scores = detector.score(np.stack([*odd.values()])[..., None])
for name, score in zip(odd, scores):
    print(f"{name:10} {score:.4f}, threshold {detector.threshold:.4f}")

# %% [markdown]
# The negative and the damaged image have the highest scores. The flower, a grey blur at
# 28 pixels, stays below the threshold, and a few ornate letters of new fonts are above
# it. A score says where to look first; one below the threshold is no proof.
#
# [Anomalies](../guide/anomalies.md) has the other scorers, and what they need. With a
# classifier, `afterimage predict` writes how far each image is from the training
# images: see [predictions](../guide/predict.md).
