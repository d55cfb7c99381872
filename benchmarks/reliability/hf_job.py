"""The job with Hugging Face's Trainer, as in its example scripts and guides.

`TrainingArguments(full_determinism=True)`, `save_steps`, `save_total_limit`, and
`train(resume_from_checkpoint=get_last_checkpoint(out))`, which skips the batches
already seen and restores the random states.
"""

import os

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.reliability.parts import Autoencoder, Folder, report_module
from benchmarks.reliability.words import arguments, report


class Module(nn.Module):
    """The autoencoder with the interface that Trainer expects."""

    def __init__(self, noise: float):
        super().__init__()
        self.network, self.step = Autoencoder(noise), 0

    def forward(self, images):
        return {"loss": self.network.loss(images, self.step)}


class Report(TrainerCallback):
    """Reports where training began and each completed step."""

    def __init__(self, module: Module):
        self.module = module

    def on_train_begin(self, args, state, control, **kwargs):
        report("from", state.global_step)

    def on_step_begin(self, args, state, control, **kwargs):
        self.module.step = state.global_step + 1

    def on_step_end(self, args, state, control, **kwargs):
        report("step", state.global_step)


def collate(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch under the name of forward's argument."""
    return {"images": torch.stack(rows)}


def main() -> None:
    """Trains, continues if there is a checkpoint, and reports the final weights."""
    args = arguments()
    options = TrainingArguments(
        output_dir=args.out,
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=args.save_every,
        save_total_limit=3,
        seed=args.seed,
        full_determinism=True,
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=args.save_every,
        report_to="none",
        remove_unused_columns=False,
    )
    set_seed(args.seed)
    images = Folder(args.data)
    report("images", len(images))
    module = Module(args.noise)
    trainer = Trainer(
        model=module,
        args=options,
        train_dataset=images,
        data_collator=collate,
        callbacks=[Report(module)],
    )
    last = get_last_checkpoint(args.out) if os.path.isdir(args.out) else None
    trainer.train(resume_from_checkpoint=last)
    report_module(trainer.state.global_step, module)


if __name__ == "__main__":
    main()
