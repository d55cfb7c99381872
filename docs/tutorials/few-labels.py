# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Few labels
#
# Labels are expensive, images are not. We pretrain on all images without labels, then
# train with a few labels for each class, and compare with the same network trained from
# random weights.
#
# `characters` are 47 letters and digits in 57 handwriting fonts, and test images in 38
# other fonts. They come with the package.

# %%
import os
import tempfile

from afterimage.data import open_data

os.chdir(tempfile.mkdtemp())
characters = open_data("characters")
print(characters.train.shape, len(characters.train), len(characters.test))

# %% [markdown]
# ## Pretrain
#
# `recommend` chooses settings for these images and this machine. It is given the pixels
# only. With `minutes=10` instead of `steps` it plans the steps as well.

# %% tags=["quiet"]
from afterimage.pretrain import pretrain, recommend

images = characters.train.gather(range(len(characters.train)))
config = recommend(images, out="runs/encoder", steps=200)
result = pretrain(config, data=images)

# %% [markdown]
# ## Train with five labels for each character
#
# `mode="full"` trains the whole network from the encoder; `mode="scratch"` trains the
# same network, with the same labels and for as many steps, from random weights.

# %% tags=["quiet"]
from afterimage.finetune import FinetuneConfig, finetune


def train(mode, labels):
    config = FinetuneConfig(
        from_="runs/encoder",
        data="characters",
        out=f"runs/{mode}-{labels}",
        mode=mode,
        labels_per_class=labels,
        steps=200,
        eval_every=200,
        log_every=100,
    )
    return finetune(config).results["test"]["accuracy"]


found = {mode: train(mode, 5) for mode in ("full", "scratch")}

# %%
for mode, accuracy in found.items():
    share, low, high = (accuracy[name] for name in ("value", "low", "high"))
    print(f"{mode:8} {share:.1%}, 95 % interval {low:.1%} to {high:.1%}")

# %% [markdown]
# ## Without training a network
#
# With very few labels, a linear classifier on the features may be enough. Raw pixels
# show what the encoder adds.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import afterimage
from afterimage.data import choose_labels

encoder = afterimage.load_encoder("runs/encoder")
new = characters.test.gather(range(len(characters.test)))
rows = choose_labels(characters.train, per_class=5, seed=0)
pixels = {"train": images.reshape(len(images), -1), "test": new.reshape(len(new), -1)}
features = {"train": encoder.features(images), "test": encoder.features(new)}
for name, vectors in {"pixels": pixels, "features": features}.items():
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    model.fit(vectors["train"][rows], characters.train.labels[rows])
    right = model.score(vectors["test"], characters.test.labels)
    print(f"linear classifier on {name}: {100 * right:.1f} %")

# %% [markdown]
# Next: [fine-tuning](../guide/finetune.md), [which method
# when](../guide/which-method.md).
