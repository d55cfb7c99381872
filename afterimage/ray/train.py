"""Pretraining by Ray Train: workers form one JAX job, and start again if one dies."""

import dataclasses
import importlib
import pathlib
import shutil
from typing import Any, Literal

from afterimage.checkpoints.errors import CheckpointError, RunLocked
from afterimage.errors import AfterimageError, UserError
from afterimage.pretrain.config import PretrainConfig
from afterimage.pretrain.report import PretrainResult
from afterimage.ray.cluster import connect, on_cpu
from afterimage.storage.urls import is_remote

_NEEDS: dict[str, dict[str, Any]] = {
    "cpu": {"resources_per_worker": {"CPU": 1}},
    "gpu": {"use_gpu": True, "resources_per_worker": {"GPU": 1}},
    "tpu": {"use_tpu": True},
}


def pretrain(
    config: PretrainConfig,
    *,
    workers: int,
    device: Literal["cpu", "gpu", "tpu"] = "gpu",
    address: str | None = None,
    failures: int = 3,
    **scaling: Any,
) -> PretrainResult:
    """`afterimage.pretrain` on `workers` processes of a Ray cluster, as one job.

    Every worker has one core or one GPU; further keywords are those of Ray's
    `ScalingConfig`, e.g. `topology="4x4"` and `accelerator_type` for TPUs. The run
    folder must be on a file system that every machine mounts; the images there or in a
    bucket. If a worker dies, all are started again, at most `failures` times, and
    continue from the newest checkpoint; on the same hardware the result is
    bit-identical to an undisturbed run. Nothing is sent to Ray's usage statistics.

    Args:
      address: the cluster, as in `ray.init`: None starts one here, unless RAY_ADDRESS
        names one or this process has joined one; "local" always starts one.

    Raises:
      UserError: `out` is a bucket; Ray is missing or not reached; also what
        `afterimage.pretrain` raises.
      AfterimageError: workers died more often than `failures`.
    """
    if device not in _NEEDS:
        raise UserError(f"device={device!r}: must be one of {', '.join(_NEEDS)}")
    if workers < 1 or failures < 0:
        raise UserError(
            f"workers={workers}, failures={failures}: must be at least 1 and 0"
        )
    if is_remote(config.out):
        raise UserError(
            f"out={config.out!r}: with Ray Train the run folder must be a path on a "
            "file system that every machine mounts, not a bucket. Give such a path and "
            "copy the finished run to the bucket, or train without Ray (afterimage "
            "pretrain --out)"
        )
    connect(address, show=True)
    from ray.train.v2.jax import JaxConfig, JaxTrainer

    train: Any = importlib.import_module("ray.train")
    out = pathlib.Path(config.out).absolute()
    # Ray's own notes, without checkpoints; it would continue what it finds there.
    notes = out.with_name(f".{out.name}.ray")
    shutil.rmtree(notes, ignore_errors=True)
    trainer = JaxTrainer(
        _work,
        train_loop_config={"config": dataclasses.replace(config, out=str(out))},
        # On CPU, Ray connects the workers only if it believes that they have GPUs.
        jax_config=JaxConfig(use_tpu=device == "tpu", use_gpu=device != "tpu"),
        scaling_config=train.ScalingConfig(
            num_workers=workers, **_NEEDS[device], **scaling
        ),
        run_config=train.RunConfig(
            name=notes.name,
            storage_path=str(notes.parent),
            failure_config=train.FailureConfig(max_failures=failures),
            worker_runtime_env={"env_vars": on_cpu()} if device == "cpu" else None,
        ),
    )
    try:
        found: Any = trainer.fit().return_value
    except train.TrainingFailedError as error:
        raise AfterimageError(
            f"The workers failed {failures + 1} times: {error}\nWhat is saved in {out} "
            "stays; the same call continues"
        ) from error
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    if isinstance(found, Exception):
        raise found
    return found


def _work(settings: dict[str, Any]) -> Any:
    """Runs in every worker; the result of the first is the result of the run."""
    from afterimage.pretrain.run import pretrain as run

    try:
        return run(settings["config"])
    except RunLocked:  # by a worker that Ray is still ending: try again
        raise
    except (AfterimageError, CheckpointError) as error:
        return error  # another attempt would fail alike
