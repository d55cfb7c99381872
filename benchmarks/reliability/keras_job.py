"""The job in Keras on its default backend, as in its guides.

`set_random_seed` and `enable_op_determinism`, `image_dataset_from_directory`,
`BackupAndRestore(double_checkpoint=True)` at each epoch, `ModelCheckpoint`, and
`TerminateOnNaN(raise_error=True)`, which leaves the backup in place. (With
`save_freq=N` it would keep the weights of step N and start the epoch again.)
"""

import math

import keras
import tensorflow as tf

from benchmarks.reliability.words import arguments, nan_step, report, report_final


class Autoencoder(keras.Model):
    """A functional model whose batch of one step may be NaN."""

    def train_step(self, data):
        given, wanted = data
        if nan_step():
            # In the target too: a ReLU of this backend turns NaN into 0.
            now = tf.equal(self.optimizer.iterations + 1, nan_step())
            given, wanted = (
                tf.where(now, tf.fill(tf.shape(x), float("nan")), x)
                for x in (given, wanted)
            )
        return super().train_step((given, wanted))


def block(x, width: int):
    """Two 3x3 convolutions, added to the identity."""
    y = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    y = keras.layers.Conv2D(width, 3, padding="same")(y)
    return keras.layers.ReLU()(keras.layers.Add()([x, y]))


def network(noise: float, seed: int) -> keras.Model:
    """32x32x3 to 4x4x128 and back."""
    layers = keras.layers
    inputs = x = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, -1)(x)
    if noise:
        x = layers.GaussianNoise(noise, seed=seed)(x)
    x = layers.Conv2D(32, 2, 2, activation="relu")(x)
    x = block(layers.Conv2D(64, 2, 2, activation="relu")(x), 64)
    x = block(layers.Conv2D(128, 2, 2, activation="relu")(x), 128)
    x = layers.Conv2DTranspose(64, 2, 2, activation="relu")(x)
    x = layers.Conv2DTranspose(32, 2, 2, activation="relu")(x)
    return Autoencoder(inputs, layers.Conv2DTranspose(3, 2, 2)(x))


class Report(keras.callbacks.Callback):
    """Reports where training began and each completed step."""

    began = False

    def on_train_batch_begin(self, batch, logs=None):
        if not self.began:
            self.began = True
            report("from", int(self.model.optimizer.iterations))

    def on_train_batch_end(self, batch, logs=None):
        report("step", int(self.model.optimizer.iterations))


def main() -> None:
    """Trains, continues if there is a checkpoint, and reports the final weights."""
    args = arguments()
    keras.utils.set_random_seed(args.seed)
    tf.config.experimental.enable_op_determinism()
    images = keras.utils.image_dataset_from_directory(
        args.data,
        labels=None,
        image_size=(32, 32),
        batch_size=args.batch_size,
        shuffle=True,
        seed=args.seed,
    )
    report("images", len(images.file_paths))
    model = network(args.noise, args.seed)
    model.compile(keras.optimizers.AdamW(1e-3), "mse")
    callbacks = [
        keras.callbacks.TerminateOnNaN(raise_error=True),
        keras.callbacks.BackupAndRestore(f"{args.out}/backup", double_checkpoint=True),
        keras.callbacks.ModelCheckpoint(f"{args.out}/model.keras"),
        Report(),
    ]
    pairs = images.map(lambda x: (x, x / 127.5 - 1)).prefetch(tf.data.AUTOTUNE)
    epochs = math.ceil(args.steps / len(images))
    model.fit(pairs, epochs=epochs, verbose=0, callbacks=callbacks)
    weights = [variable.numpy() for variable in model.trainable_variables]
    report_final(int(model.optimizer.iterations), weights)


if __name__ == "__main__":
    main()
