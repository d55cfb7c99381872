# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From a folder to predictions
#
# You have a folder of images, and labels for a few of them. Four commands give you a
# class for every image, and a vector for every image.
#
# First we need a folder. The package includes letters in many handwriting fonts; we
# write ten of them, A to J, as PNG files: `photos` holds all of them, `labelled` a
# folder for each letter, with some of its images. With your own images, skip this step.

# %%
import os
import pathlib
import tempfile

from PIL import Image

from afterimage.data import open_data

os.chdir(tempfile.mkdtemp())
letters = open_data("characters").train
names = letters.class_names
images = letters.gather(range(len(letters)))[..., 0]
for row, (image, label) in enumerate(zip(images, letters.labels)):
    if names[label] not in "ABCDEFGHIJ":
        continue
    folders = ["photos"]
    if row % 3 == 0:  # a label for a third of them
        folders.append(f"labelled/{names[label]}")
    for folder in folders:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(f"{folder}/{row:04d}.png")

# %% language="bash"
# ls photos | wc -l
# ls labelled

# %% [markdown]
# ## 1. Pretrain
#
# All images are used, without labels. The command looks at them, at this machine and at
# the time it has, and says what it chose. Leave `--minutes` out for ten minutes, or
# give it an hour: half a minute is for this page.

# %% language="bash"
# set -o pipefail
# afterimage pretrain photos --out runs/photos --minutes 0.5 2>&1 |
#   grep -v "^eval\|^step\|\.\.\.$"

# %% [markdown]
# `runs/photos/report.html` shows curves and reconstructions, and `runs/photos/encoder`
# is the encoder.
#
# ## 2. Train a classifier
#
# A fifth of the labelled images is held out, and scored at the end.

# %% language="bash"
# set -o pipefail
# afterimage finetune labelled --from runs/photos --out runs/cls --steps 150 2>&1 |
#   tail -8

# %% [markdown]
# ## 3. Predict

# %% language="bash"
# afterimage predict photos --from runs/cls --out predictions.csv

# %% [markdown]
# Each row has the most probable class, how probable it is, the next classes, and how
# far the image is from the training images:

# %%
import pyarrow.csv

predictions = pyarrow.csv.read_csv("predictions.csv")
columns = ["file", "class", "probability", "margin", "farther_than"]
predictions.select(columns).slice(0, 8).to_pylist()

# %% [markdown]
# ## 4. Features, and neighbours
#
# The encoder turns images into vectors for any other program, and finds the images that
# are nearest to one.

# %% language="bash"
# afterimage features photos --from runs/photos --out features.parquet
# first=$(ls photos/*.png | head -1)
# afterimage similar photos --from runs/photos --query $first --out near.png

# %%
Image.open("near.png")

# %% [markdown]
# Next: [predictions](../guide/predict.md) in detail, [images of all
# kinds](../guide/own-images.md), or [what to do with few labels](few-labels.py).
