"""The job in Lightning, as in its guides to checkpointing and reproducibility.

`seed_everything(workers=True)`, `Trainer(deterministic=True)`, a `ModelCheckpoint`
with `save_last`, `fit(ckpt_path="last")`, torchdata's `StatefulDataLoader` for a resume
in mid-epoch, and `EarlyStopping(check_finite=True)` against a NaN loss.
"""

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.reliability.parts import Autoencoder, Folder, report_module
from benchmarks.reliability.words import arguments, report


class Module(lightning.LightningModule):
    """The autoencoder and its optimiser."""

    def __init__(self, noise: float):
        super().__init__()
        self.network = Autoencoder(noise)

    def training_step(self, batch, batch_idx):
        loss = self.network.loss(batch, self.global_step + 1)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Images(lightning.LightningDataModule):
    """The folder of images, shuffled."""

    def __init__(self, data: str, batch_size: int):
        super().__init__()
        self.images, self.batch_size = Folder(data), batch_size

    def train_dataloader(self):
        return StatefulDataLoader(
            self.images, batch_size=self.batch_size, shuffle=True, num_workers=0
        )


class Report(Callback):
    """Reports where training began and each completed step."""

    def on_train_start(self, trainer, pl_module):
        report("from", trainer.global_step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        report("step", trainer.global_step)


def main() -> None:
    """Trains, continues if there is a checkpoint, and reports the final weights."""
    args = arguments()
    lightning.seed_everything(args.seed, workers=True)
    images = Images(args.data, args.batch_size)
    report("images", len(images.images))
    module = Module(args.noise)
    saved = ModelCheckpoint(
        dirpath=f"{args.out}/checkpoints",
        every_n_train_steps=args.save_every,
        save_top_k=-1,
        save_last=True,
    )
    finite = EarlyStopping(
        "train_loss_epoch",
        patience=10**9,
        check_finite=True,
        check_on_train_epoch_end=True,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=args.steps,
        max_epochs=-1,
        deterministic=True,
        default_root_dir=args.out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saved, finite, Report()],
    )
    trainer.fit(module, datamodule=images, ckpt_path="last")
    report_module(trainer.global_step, module.network)


if __name__ == "__main__":
    main()
