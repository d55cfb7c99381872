"""Thousands of damaged files of every kind that we write, through the real readers.

Each is read, or refused by an error with an exit code: never a traceback, never more
than a few seconds, never more memory than a bounded amount. Where a checksum would
hide what lies behind it, the damaged file is sealed again.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from afterimage.checkpoints import inspect, manifest
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import (
    encode,
    read_classifier,
    read_encoder,
    write_classifier,
)
from afterimage.encoder import Encoder, stored_model, stored_preprocessing
from afterimage.errors import AfterimageError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.evaluate import _labels_file, _trained_on
from afterimage.finetune.report import FinetuneResult
from afterimage.known import read_weights
from afterimage.models.classifier import HeadConfig
from afterimage.runs import Run
from afterimage.training.metrics import read_rows
from tests import encoder_artefact, mutations, torch_pickles
from tests.faults.test_run_files import GOOD, LABELS, RESULTS
from tests.manifests import (
    classifier_manifest,
    safetensors,
    write_encoder_folder,
)

resource = pytest.importorskip("resource")

Draw = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file: `make` it in a folder; `damage` it (given what `make` made, by
    name); `read` the folder."""

    make: Callable[[pathlib.Path], object]
    damage: Callable[[Draw, dict[str, bytes]], dict[str, bytes]]
    read: Callable[[pathlib.Path], object]
    memory: int = 2**30
    """Bytes of addresses beyond those that the process has when reading begins."""


def _sealed(content: Any, files: dict[str, bytes]) -> bytes:
    """A manifest with the right checksums, as far as there is a place for them."""
    if not isinstance(content, dict):
        return mutations.json_text(content)
    listed = content.get("files")
    for name, data in files.items() if isinstance(listed, dict) else ():
        if isinstance(listed.get(name), dict):
            digest = hashlib.sha256(data).hexdigest()
            listed[name] |= {"size": len(data), "sha256": digest}
    content.pop("checksum", None)
    with contextlib.suppress(ValueError):  # NaN: without a right checksum, then
        return manifest.encode(content)
    return mutations.json_text({**content, "checksum": ""})


def _damage_artefact(draw, files):
    """Of the bytes, or of manifest or header with all checksums made right again."""
    kind = draw(st.integers(0, 5))
    weights = files.get("weights.safetensors", b"")
    if kind == 0:
        name = draw(st.sampled_from(sorted(files)))
        return {**files, name: mutations.bytes_of(draw, files[name])}
    if kind == 1 and weights:
        weights = mutations.bytes_of(draw, weights)
    elif kind == 2 and weights:
        size = int.from_bytes(weights[:8], "little")
        header = mutations.json_of(draw, json.loads(weights[8 : 8 + size]))
        weights = safetensors(header, weights[8 + size :])
    content = json.loads(files["manifest.json"])
    if kind > 2 or not weights:
        content = mutations.json_of(draw, content)
    others = {**files, "weights.safetensors": weights} if weights else files
    return {**others, "manifest.json": _sealed(content, others)}


def _make_classifier(folder):
    head = {"kernel": np.ones((3, 3), np.float32)}
    tree = {"encoder": {"w": np.ones(3, np.float32)}, "heads": {"classes": head}}
    write_classifier(folder, tree, {}, classifier_manifest())


def _read_encoder(folder):
    _, _, content = read_encoder(folder)
    stored_model(content)
    stored_preprocessing(content)


def _read_classifier(folder):
    _, _, content = read_classifier(folder)
    stored_model(content)
    for entry in content["heads"].values():
        HeadConfig(**{k: v for k, v in entry.items() if k != "class_names"})


def _inspect(folder):
    inspect.format_verify(inspect.verify(folder))
    inspect.format_show(inspect.show(folder))


def _make_run(folder):
    """Step 3, of which only the manifest is damaged."""
    tree = {"params": {"w": jnp.ones(3)}, "step": jnp.int32(3)}
    with Store(folder, best="min") as store:
        store.save(3, tree, manifest={"a": [1]}, metric=0.5)


def _damage_step(draw, files):
    name = "checkpoints/3/manifest.json"
    if draw(st.integers(0, 4)) == 0:
        return {**files, name: mutations.bytes_of(draw, files[name])}
    content = mutations.json_of(draw, json.loads(files[name]))
    return {**files, name: _sealed(content, {})}


def _read_run(folder):
    inspect.format_list(inspect.list_steps(folder))
    inspect.format_prune(inspect.prune(folder, dry_run=True))
    inspect.format_verify(inspect.verify(folder))
    inspect.format_show(inspect.show(folder, 3))


def _restore(folder):
    target = {"params": {"w": jnp.ones(3)}, "step": jnp.int32(0)}
    with Store(folder, warn=lambda _: None) as store:
        store.restore(target)


def _json_file(name, value):
    """(make, damage) of one JSON file."""

    def make(folder):
        (folder / name).write_text(json.dumps(value))

    def damage(draw, files):
        if draw(st.integers(0, 4)) == 0:
            return {name: mutations.bytes_of(draw, files[name])}
        return {name: mutations.json_text(mutations.json_of(draw, value))}

    return make, damage


CONFIG = {
    "afterimage": "0.1.0",
    "kind": "pretrain",
    "started": "2026-11-28T12:00:00",
    "config": {"lr": 0.001, "data": "digits", "betas": [0.9, 0.95]},
    "data": {"name": "digits", "fingerprint": "f" * 64},
    "runtime": {"jax": "0.10", "devices": 1},
}


def _read_config(folder):
    run = Run(folder, kind="pretrain", config=CONFIG["config"])
    (folder / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
    try:
        run.check_settings()
        run._record_config()
        run.check_data("digits", "f" * 64)
    finally:
        (folder / "config.json").unlink(missing_ok=True)


def _make_metrics(folder):
    lines = [*GOOD, json.dumps({f"train/{n}": 0.5 * n for n in range(20)}).encode()]
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines * 5) + b"\n")


def _damage_metrics(draw, files):
    lines = files["metrics.jsonl"].splitlines()
    if draw(st.booleans()):
        return {"metrics.jsonl": mutations.bytes_of(draw, files["metrics.jsonl"])}
    for _ in range(draw(mutations.MANY)):
        place = draw(st.integers(0, len(lines) - 1))
        value = mutations.json_of(draw, json.loads(GOOD[0]))
        lines[place] = mutations.json_text(value)
    return {"metrics.jsonl": b"\n".join(lines)}


def _read_metrics(folder):
    said = []
    rows = read_rows(folder / "metrics.jsonl", said.append)
    assert all(row["step"] >= 0 for row in rows)
    assert len(said) <= 1
    json.dumps(rows, allow_nan=False)


def _read_labels(folder):
    settings = EvaluateConfig(from_=str(folder), data="digits")
    assert 0 <= _trained_on(_labels_file(settings), ["1", "2"]) <= 2


def _read_results(folder):
    run = Run(folder, kind="finetune", config={})
    FinetuneResult.of(run, complete=True).summary()


FLOATS = np.arange(12, dtype="<f4").tobytes()


def _make_torch(folder):
    storage = torch_pickles.storage(12)
    tree = torch_pickles.state_dict(
        **{
            "conv.weight": torch_pickles.tensor(storage, (3, 4), (4, 1)),
            "conv.bias": torch_pickles.tensor(storage, (4,), (3,), offset=2),
        }
    )
    (folder / "pickle").write_bytes(tree)
    torch_pickles.write(folder / "x.pth", tree, {"0": FLOATS})


def _damage_torch(draw, files):
    pickled = files["pickle"]
    kind = draw(st.integers(0, 3))
    if kind > 1:
        pickled = mutations.opcodes_of(draw, pickled)
    elif kind == 1:
        pickled = mutations.bytes_of(draw, pickled)
    data = torch_pickles.encode(pickled, {"0": FLOATS})
    return {"x.pth": data if kind else mutations.bytes_of(draw, data)}


def _make_export(folder):
    weights = {f"layer{n}.conv.weight": np.ones((2, 3), np.float32) for n in range(3)}
    (folder / "x.safetensors").write_bytes(encode(weights))


def _damage_export(draw, files):
    data = files["x.safetensors"]
    if draw(st.booleans()):
        return {"x.safetensors": mutations.bytes_of(draw, data)}
    size = int.from_bytes(data[:8], "little")
    header = mutations.json_of(draw, json.loads(data[8 : 8 + size]))
    return {"x.safetensors": safetensors(header, data[8 + size :])}


KINDS = {
    "encoder": Kind(write_encoder_folder, _damage_artefact, _read_encoder),
    "encoder, inspected": Kind(write_encoder_folder, _damage_artefact, _inspect),
    "classifier": Kind(_make_classifier, _damage_artefact, _read_classifier),
    "step": Kind(_make_run, _damage_step, _read_run),
    "config.json": Kind(*_json_file("config.json", CONFIG), _read_config),
    "labels.json": Kind(*_json_file("labels.json", LABELS), _read_labels),
    "results.json": Kind(*_json_file("results.json", RESULTS), _read_results),
    "metrics.jsonl": Kind(_make_metrics, _damage_metrics, _read_metrics),
    "torch": Kind(_make_torch, _damage_torch, lambda f: read_weights(f / "x.pth")),
    "exported": Kind(
        _make_export, _damage_export, lambda f: read_weights(f / "x.safetensors")
    ),
}
HEAVY = {
    "encoder, built": Kind(
        lambda folder: encoder_artefact.write(folder),
        _damage_artefact,
        lambda folder: Encoder(*read_encoder(folder)),
        memory=2**34,
    ),
    "step, restored": Kind(_make_run, _damage_step, _restore, memory=2**34),
}
"""Kinds whose reader takes a tenth of a second: a tenth as many.

XLA's and Orbax's threads reserve addresses that they never use.
"""


@contextlib.contextmanager
def bounded_memory(more: int):
    """This process may map no more than `more` bytes beyond what it has."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def fuzz(kind: Kind, folder: pathlib.Path, count: int) -> None:
    """Damage `count` times, read, and count what was refused."""
    folder.mkdir()
    kind.make(folder)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    found = {"read": 0, "refused": 0}

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=datetime.timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.data())
    def one(data):
        for name, content in kind.damage(data.draw, files).items():
            (folder / name).write_bytes(content)
        error = None
        try:
            kind.read(folder)
            found["read"] += 1
        except (CheckpointError, AfterimageError) as refusal:
            error = refusal
        if error is not None:
            found["refused"] += 1
            assert error.exit_code in (2, 3)
            assert 0 < len(str(error)) < 20_000

    kind.read(folder)  # undamaged: it must be read, and libraries start their threads
    with bounded_memory(kind.memory):
        one()
    # Both ways are taken, so neither damage nor reader is a dummy.
    assert found["read"] + found["refused"] >= count // 2
    assert found["refused"] or kind.read is _read_metrics


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_damaged_files_are_read_or_refused(tmp_path, kind):
    fuzz(KINDS[kind], tmp_path / "x", 100)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", [*KINDS, *HEAVY])
def test_ten_thousand_damaged_files_are_read_or_refused(tmp_path, kind):
    every = KINDS | HEAVY
    fuzz(every[kind], tmp_path / "x", 1000 if kind in HEAVY else 10_000)
