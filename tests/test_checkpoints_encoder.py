"""The encoder artefact loads alone, executes nothing, and is believed when good."""

import io
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from afterimage.checkpoints.errors import CheckpointError, UsageError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import (
    decode,
    encode,
    read_artefact,
    read_encoder,
    write_encoder,
)
from tests.manifests import encoder_manifest

PARAMS = {"stem": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
STATS = {"stem": {"mean": np.ones(3, ml_dtypes.bfloat16)}}
MANIFEST = encoder_manifest(steps=3)


def test_it_comes_back_with_its_manifest(tmp_path):
    write_encoder(tmp_path / "encoder", PARAMS, STATS, MANIFEST)
    params, stats, manifest = read_encoder(tmp_path / "encoder")
    np.testing.assert_array_equal(params["stem"]["kernel"], PARAMS["stem"]["kernel"])
    assert stats["stem"]["mean"].dtype == ml_dtypes.bfloat16
    assert manifest["schema"] == 1
    assert manifest["kind"] == "encoder"
    assert manifest["trained"] == {"steps": 3}
    assert set(manifest["files"]) == {"weights.safetensors"}


def test_device_arrays_and_empty_stats(tmp_path):
    write_encoder(tmp_path / "encoder", {"a": jnp.ones(2, jnp.bfloat16)}, {}, MANIFEST)
    params, stats, _ = read_encoder(tmp_path)
    assert params["a"].dtype == ml_dtypes.bfloat16
    assert stats == {}


def test_other_tools_read_the_weights(tmp_path):
    write_encoder(tmp_path / "encoder", PARAMS, {}, MANIFEST)
    loaded = safetensors.numpy.load_file(tmp_path / "encoder" / "weights.safetensors")
    np.testing.assert_array_equal(
        loaded["params/stem/kernel"], PARAMS["stem"]["kernel"]
    )


def test_we_read_what_other_tools_write():
    written = {"a": np.arange(4, dtype=np.int16), "b": np.ones((2, 2))}
    read = decode(safetensors.numpy.save(written, {"format": "np"}), "x")
    for name, array in written.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        hnp.arrays(
            st.sampled_from([np.bool_, np.int8, np.uint32, np.float16, np.float64]),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        ),
        max_size=4,
    )
)
def test_encode_and_decode_are_inverse(arrays):
    back = decode(encode(arrays), "x")
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == array.tobytes()


def _file(header: dict, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (_file({"a": _entry([2**40], [0, 2**42])}), "ends at byte"),
        (_file({"a": _entry([2**62, 0], [0, 0])}), "larger than any file"),
        (_file({"a": _entry([4], [0, 8])}, b"x" * 8), "needs 16 bytes"),
        (_file({"a": _entry([2], [0, 8])}, b"x" * 4), "ends at byte 8"),
        (_file({"a": _entry([-1], [0, 4])}, b"x" * 4), "non-negative"),
        (_file({"a": _entry([1], [0, 4], "O")}, b"x" * 4), "unknown dtype"),
        (_file({"a": _entry([1], [4, 8])}, b"x" * 8), "starts at byte 4"),
        (
            _file({"a": _entry([1], [0, 4]), "b": _entry([1], [0, 4])}, b"x" * 4),
            "the one before ends at 4",
        ),
        (_file({"a": _entry([1], [0, 4])}, b"x" * 9), "tensors use 4"),
        ((2**60).to_bytes(8, "little") + b"{}", "header of"),
        ((2).to_bytes(8, "little") + b"{[", "not JSON"),
        (b"", "not a safetensors file"),
        (pickle.dumps({"a": 1}), "Python pickle"),
        (b"PK\x03\x04" + b"x" * 20, "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 20, "HDF5"),
    ],
    ids=[
        "huge shape",
        "huge shape without elements",
        "shape against bytes",
        "beyond the end",
        "negative",
        "object dtype",
        "gap",
        "overlap",
        "unclaimed bytes",
        "huge header",
        "broken header",
        "empty",
        "pickle",
        "zip",
        "hdf5",
    ],
)
def test_what_is_not_true_is_refused_before_any_array(data, text):
    with pytest.raises(CheckpointError, match=text):
        decode(data, "weights")


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def _pickled_checkpoint(folder: pathlib.Path):
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(pickle.dumps(_Bomb()))
    (folder / "manifest.json").write_bytes(pickle.dumps(_Bomb()))


def _npz_of_objects(folder: pathlib.Path):
    folder.mkdir()
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([_Bomb()], dtype=object))
    (folder / "weights.safetensors").write_bytes(buffer.getvalue())


@pytest.mark.parametrize("make", [_pickled_checkpoint, _npz_of_objects])
def test_a_pickle_is_refused_unexecuted(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "encoder")
    with pytest.raises(CheckpointError):
        read_encoder(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_with_a_good_manifest_is_refused_unexecuted(tmp_path, monkeypatch):
    """Somebody who computes our checksums still gets no code executed."""
    from afterimage.checkpoints import manifest

    monkeypatch.chdir(tmp_path)
    _pickled_checkpoint(tmp_path / "encoder")
    sealed = manifest.seal({**MANIFEST, "kind": "encoder"}, tmp_path / "encoder")
    (tmp_path / "encoder" / "manifest.json").write_bytes(sealed)
    with pytest.raises(CheckpointError, match="Python pickle"):
        read_encoder(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_flipped_bit_is_refused(tmp_path):
    write_encoder(tmp_path / "encoder", PARAMS, STATS, MANIFEST)
    weights = tmp_path / "encoder" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 4
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights.safetensors: damaged"):
        read_encoder(tmp_path)


def test_a_newer_schema_is_refused_with_the_cure(tmp_path):
    from afterimage.checkpoints import manifest

    write_encoder(tmp_path / "encoder", PARAMS, STATS, MANIFEST)
    path = tmp_path / "encoder" / "manifest.json"
    path.write_bytes(manifest.encode(json.loads(path.read_bytes()) | {"schema": 99}))
    with pytest.raises(CheckpointError, match=r"schema 99.*pip install -U"):
        read_encoder(tmp_path)


def test_a_run_folder_gives_its_encoder_else_the_newest_good_step(tmp_path):
    with Store(tmp_path) as store:
        for step in (1, 2):
            params = {"a": np.full(2, step)}
            artefact = (params, {}, encoder_manifest(n=step))
            store.save(step, {"x": jnp.ones(1)}, manifest={}, encoder=artefact)
    assert read_encoder(tmp_path)[2]["trained"]["n"] == 2
    assert read_encoder(tmp_path / "checkpoints" / "1")[2]["trained"]["n"] == 1
    content = encoder_manifest(n="run")
    write_encoder(tmp_path / "encoder", {"a": np.ones(2)}, {}, content)
    assert read_encoder(tmp_path)[2]["trained"]["n"] == "run"
    (tmp_path / "encoder" / "weights.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints/2/encoder/weights.safetensors").unlink()
    assert read_encoder(tmp_path)[2]["trained"]["n"] == 1
    (tmp_path / "checkpoints/1/encoder/manifest.json").write_text("{}")
    with pytest.raises(CheckpointError) as error:
        read_encoder(tmp_path)
    assert str(error.value).count("\n") == 3, "each of the three is named"


@pytest.mark.parametrize("name", ["absent", "."])
def test_nothing_to_read_is_an_error_that_says_what_is_expected(tmp_path, name):
    with pytest.raises(CheckpointError, match="expected a run folder"):
        read_encoder(tmp_path / name)


def test_a_failed_write_leaves_the_old_encoder(tmp_path, monkeypatch):
    write_encoder(tmp_path / "encoder", PARAMS, {}, encoder_manifest(n=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afterimage.checkpoints.files.write_bytes", full)
    with pytest.raises(CheckpointError, match="free some space"):
        write_encoder(tmp_path / "encoder", PARAMS, {}, encoder_manifest(n=2))
    assert read_encoder(tmp_path)[2]["trained"]["n"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_loading_needs_neither_jax_nor_orbax(tmp_path):
    write_encoder(tmp_path / "encoder", PARAMS, STATS, MANIFEST)
    code = (
        "import sys; from afterimage.checkpoints.weights import read_encoder; "
        f"read_encoder({str(tmp_path)!r}); "
        "assert not {'jax', 'orbax', 'pickle5'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_artefact_of_a_run_or_in_its_own_folder(tmp_path):
    write_encoder(tmp_path / "run" / "encoder", PARAMS, STATS, MANIFEST)
    kinds = {"classifier": "finetune", "encoder": "pretrain"}
    for place in (tmp_path / "run", tmp_path / "run" / "encoder"):
        found = read_artefact(place, kinds)
        assert (found.folder, found.kind) == (tmp_path / "run" / "encoder", "encoder")
        assert found.manifest["trained"] == {"steps": 3}
        kernel = found.params["stem"]["kernel"]
        np.testing.assert_array_equal(kernel, PARAMS["stem"]["kernel"])
    with pytest.raises(UsageError, match="no classifier; expected a finished"):
        read_artefact(tmp_path / "run", {"classifier": "it"})
    with pytest.raises(CheckpointError, match="not a classifier"):
        read_artefact(tmp_path / "run" / "encoder", {"classifier": "it"})


def test_an_artefact_that_links_out_of_its_run_is_refused(tmp_path):
    write_encoder(tmp_path / "elsewhere", PARAMS, STATS, MANIFEST)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "encoder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link to a place outside"):
        read_artefact(tmp_path / "run", {"encoder": "pretrain"})
