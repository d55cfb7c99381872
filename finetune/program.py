"""The fine-tuning program: an encoder and labels in, a classifier and figures out."""

from afterimage import runtime
from afterimage.finetune.config import FinetuneConfig
from afterimage.finetune.continual.parts import ContinualParts
from afterimage.finetune.continual.program import ContinualProgram
from afterimage.finetune.episodes.parts import EpisodeParts
from afterimage.finetune.episodes.program import EpisodeProgram
from afterimage.finetune.opening import open_all
from afterimage.finetune.parts import Parts
from afterimage.finetune.running import Program
from afterimage.finetune.summary import FinetuneResult
from afterimage.runs import Run
from afterimage.training.callbacks import NO_CALLBACKS, Callbacks
from afterimage.training.job import execute


def finetune(
    config: FinetuneConfig, *, callbacks: Callbacks = NO_CALLBACKS
) -> FinetuneResult:
    """Fine-tune as `config` says, or continue what its run folder holds.

    Resume this run where it has a checkpoint; else begin from the encoder `from_`, or,
    in mode scratch, from random weights of its architecture. A run that is complete is
    left as it is and its result returned.

    Raises:
      UserError, DataError: settings or data that cannot work, another run's folder.
      CheckpointError: the encoder or every checkpoint of the run is damaged;
        TransferError: parameters do not fit; RunLocked: another process writes here.
      Diverged, Interrupted: as the loop does; what was reached is saved.
    """
    runtime.enable_compile_cache()
    run = Run(config.out, kind="finetune", config=config)
    run.check_settings()
    opened = open_all(config)
    with run:
        opened.record(run)
        if config.sequence:
            return execute(
                ContinualProgram(ContinualParts(config, opened), run), run, callbacks
            )
        if config.meta != "none":
            return execute(
                EpisodeProgram(EpisodeParts(config, opened), run), run, callbacks
            )
        return execute(Program(Parts(config, opened), run), run, callbacks)
