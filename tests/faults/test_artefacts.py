"""Artefacts that lie: refused with the reason and exit code 3, however well sealed."""

import dataclasses
import json
import os
import shutil
import socket

import jax.numpy as jnp
import numpy as np
import pytest

from afterimage import known, load_encoder
from afterimage.checkpoints import files, inspect, schemas
from afterimage.checkpoints.errors import CheckpointError
from afterimage.checkpoints.store import Store
from afterimage.checkpoints.weights import encode, read_encoder
from afterimage.commands import main
from afterimage.data import Preprocessing
from afterimage.errors import UserError
from afterimage.models import FeatureInfo, ModelConfig
from afterimage.models.classifier import HeadConfig
from tests import encoder_artefact
from tests.manifests import (
    encoder_manifest,
    replace_weights,
    reseal,
    safetensors,
    write_encoder_folder,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_encoder_folder(tmp_path_factory.mktemp("good") / "encoder")


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "encoder")


def set_value(path, value):
    """A change of the manifest at `a.b.c`; without a value, that key is taken out."""

    def change(content):
        *parents, last = path.split(".")
        for parent in parents:
            content = content[parent]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return change


def refused(folder, names):
    """`folder` is refused by whoever reads it, and what is wrong is named."""
    with pytest.raises(CheckpointError) as error:
        read_encoder(folder)
    assert error.value.exit_code == 3
    assert names in str(error.value)
    assert len(str(error.value)) < 5000
    assert any(finding.fatal for finding in inspect.verify(folder))


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("model", ..., "model"),
        ("model", [], "model"),
        ("model.width", "1.0", "model.width"),
        ("model.width", 0, "model.width"),
        ("model.width", True, "model.width"),
        ("model.channels", True, "model.channels"),
        ("model.channels", 10**12, "model.channels"),
        ("model.channels", 1, "preprocessing.channels"),
        ("model.image_size", [10**6, 10**6], "model.image_size"),
        ("model.image_size", ["16", "16"], "model.image_size"),
        ("model.image_size", [16], "model.image_size"),
        ("model.bottleneck", 2**60, "model.bottleneck"),
        ("model.new_field", 1, "new_field"),
        ("preprocessing.std", [0.2, 0, 0.3], "preprocessing: std 0"),
        ("preprocessing.std", [-0.2, 0.2, 0.3], "std"),
        ("preprocessing.std", [0.2, 0.3], "2 standard deviations for 3"),
        ("preprocessing.value_range", "0,1", "preprocessing.value_range"),
        ("preprocessing.value_range", [0], "preprocessing.value_range"),
        ("preprocessing.value_range", [2, 1], "value_range [2.0, 1.0]"),
        ("preprocessing.mean", [1e308, 0, 0], "preprocessing.mean"),
        ("preprocessing.mean", [1e39, 0, 0], "preprocessing.mean"),
        ("preprocessing.mean", ..., "preprocessing.mean"),
        ("preprocessing.value_range", "abc", "preprocessing.value_range"),
        ("preprocessing.value_range", 7, "preprocessing.value_range"),
        ("preprocessing.value_range", [5], "preprocessing.value_range"),
        ("preprocessing.value_range", [0, "1"], "preprocessing.value_range"),
        ("preprocessing.value_range", [5, 1], "value_range [5.0, 1.0]"),
        ("preprocessing.image_size", [0, 16], "preprocessing.image_size"),
        ("feature_info", {"a": 1}, "feature_info"),
        ("feature_info", [{"name": "a"}], "feature_info"),
        ("data.fingerprint", 7, "data.fingerprint"),
        ("trained", None, "trained"),
        ("files", [], "files"),
        ("files", {"weights.safetensors": 3}, "weights.safetensors"),
        ("files", {"../weights.safetensors": {}}, "outside"),
        ("files", {"/etc/passwd": {}}, "outside"),
        ("files", {}, "lists no weights.safetensors"),
        ("files", {"a\0b": {"size": 1, "sha256": "0" * 64}}, "a\\x00b"),
        ("schema", True, "schema"),
        ("schema", 1.0, "schema"),
        ("kind", ["encoder"], "encoder"),
    ],
)
def test_a_sealed_manifest_that_is_none_is_refused(folder, path, value, names):
    reseal(folder, set_value(path, value))
    refused(folder, names)


def test_every_mistake_of_a_manifest_is_named_at_once(folder):
    def change(content):
        set_value("model.width", "1")(content)
        set_value("model.norm", ...)(content)
        set_value("preprocessing", 3)(content)

    reseal(folder, change)
    for name in ("model.width", "model.norm", "preprocessing"):
        refused(folder, name)


def _unsealed(text):
    """The manifest's text with its checksum empty, and `text` in it."""

    def write(path):
        content = json.loads(path.read_bytes()) | {"checksum": "", "trained": 12321}
        path.write_text(json.dumps(content).replace("12321", text))

    return write


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (_unsealed('{"loss": NaN}'), "NaN"),
        (_unsealed('{"loss": -Infinity}'), "Infinity"),
        (_unsealed('{"loss": 1e999}'), "double"),
        (_unsealed('{"a": 1, "a": 2}'), "'a' twice"),
        (_unsealed("9" * 30), "100 bits"),
        (_unsealed("9" * 5000), "thousands of digits"),
        (_unsealed("[" * 100 + "]" * 100), "64 levels"),
        (_unsealed("{}"), "checksum"),
        (lambda path: path.write_text("[" * 10**6), "levels"),
        (lambda path: path.write_text("[]"), "schema"),
        (lambda path: path.write_text("5"), "schema"),
        (lambda path: path.write_text(""), "JSON"),
        (lambda path: path.write_bytes(b'{"schema": "\xe9"}'), "UTF-8"),
        (lambda path: path.write_bytes(b"\0" * 100), "JSON"),
        (lambda path: os.truncate(path, 2**40), "expected at most"),
    ],
)
def test_a_manifest_that_is_no_json_of_ours_is_refused(folder, write, names):
    write(folder / "manifest.json")
    refused(folder, names)


def _leaf(shape, count=1, dtype="F32", begin=0):
    return {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": [begin, begin + 4 * count],
    }


@pytest.mark.parametrize(
    ("header", "body", "names"),
    [
        ({"params/a": _leaf([1] * 65)}, 4, "65 dimensions"),
        ({"params/a": _leaf([2**31] * 200_000)}, 4, "200000 dimensions"),
        ({"params/a": _leaf([1], dtype=["F32"])}, 4, "params/a"),
        ({"params/a": _leaf([1], dtype={})}, 4, "params/a"),
        ({"params/a": _leaf([True])}, 4, "params/a"),
        ({"params/a": _leaf([1.0])}, 4, "params/a"),
        ({"params/a": _leaf("1")}, 4, "params/a"),
        ({"params/a": [1]}, 4, "params/a"),
        ({"params" + "/a" * 50_000: _leaf([1])}, 4, "100006 characters"),
        (
            {"params/a": _leaf([1]), "params/a/b": _leaf([1], begin=4)},
            8,
            "'params/a/b' is inside",
        ),
        ({"params": _leaf([1])}, 4, "'params'"),
        ({"other/a": _leaf([1])}, 4, "'other/a'"),
        ({"params/\x1b[2J": [1]}, 4, "'params/\\x1b[2J'"),
        (
            {"params/a": {"dtype": "BOOL", "shape": [4], "data_offsets": [0, 4]}},
            b"\7\7\7\7",
            "boolean",
        ),
    ],
)
def test_sealed_weights_that_are_none_are_refused(folder, header, body, names):
    data = body if isinstance(body, bytes) else bytes(body)
    replace_weights(folder, safetensors(header, data))
    refused(folder, names)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tree", ["params", "stats"])
def test_weights_that_are_not_finite_are_named_and_counted(folder, tree, value, dtype):
    bad = np.ones(7, jnp.dtype(dtype))
    bad[[1, 5]] = value
    replace_weights(folder, encode({f"{tree}/a/b": bad}))
    refused(folder, f"'{tree}/a/b': 2 of 7 numbers")


def _pipe(path):
    os.mkfifo(path)


def _socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may have only about 100 characters
        try:
            opened.bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json"])
@pytest.mark.parametrize(
    "make",
    [
        _pipe,
        _socket,
        os.mkdir,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("absent"),
    ],
    ids=["pipe", "socket", "folder", "device", "loop", "nothing"],
)
def test_what_is_no_file_is_refused_at_once(folder, name, make):
    (folder / name).unlink()
    make(folder / name)
    refused(folder, str(folder))


@pytest.mark.timeout(30)
def test_a_pipe_of_the_right_size_is_refused(folder):
    """A manifest can say 0 bytes, which is the size of a pipe."""
    (folder / "more").write_bytes(b"")
    entry = {"size": 0, "sha256": "0" * 64}
    reseal(folder, lambda content: content["files"].update(more=entry))
    (folder / "more").unlink()
    os.mkfifo(folder / "more")
    refused(folder, "regular file")


def _file_link(folder, outside):
    (outside / "w").write_bytes((folder / "weights.safetensors").read_bytes())
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to(outside / "w")


def _folder_link(folder, outside):
    (outside / "more").mkdir()
    (folder / "more").symlink_to(outside / "more")


def _relative_link(folder, outside):
    (folder / "more").symlink_to("../outside")


def _hidden_link(folder, outside):
    (folder / "first").symlink_to("second")
    (folder / "second").symlink_to(outside)


@pytest.mark.parametrize(
    "link", [_file_link, _folder_link, _relative_link, _hidden_link]
)
def test_an_artefact_that_links_out_of_its_folder_is_refused(folder, tmp_path, link):
    (tmp_path / "outside").mkdir()
    link(folder, tmp_path / "outside")
    refused(folder, "outside")


def test_links_to_a_run_and_inside_an_artefact_are_followed(folder, tmp_path):
    (folder / "weights.safetensors").rename(folder / "w")
    (folder / "weights.safetensors").symlink_to("w")
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "encoder")
    (tmp_path / "link").symlink_to("run")
    assert read_encoder(tmp_path / "link")[2]["trained"] == {"steps": 3}
    (tmp_path / "alone").symlink_to("run/encoder")
    assert read_encoder(tmp_path / "alone")[2]["trained"] == {"steps": 3}


def test_the_encoder_of_a_run_may_not_lie_elsewhere(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "encoder").symlink_to(folder)
    refused(tmp_path / "run", "outside")


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        ("model.name", "resnet19", "resnet19"),
        ("model.name", "resnet18", "missing"),
        ("model.norm", "none", "unexpected stages/0/norm/scale"),
        ("model.norm", "instance", "instance"),
        ("model.decoder", "unet", "unet"),
        ("model.stem_stride", 3, "stem_stride"),
        ("model.image_size", [4, 4], "image_size"),
        ("model.bottleneck", 2**20, "missing bottleneck/kernel"),
    ],
)
@pytest.mark.timeout(60)
def test_a_model_that_cannot_be_or_is_another_is_refused(tmp_path, path, value, names):
    encoder_artefact.write(tmp_path / "encoder")
    reseal(tmp_path / "encoder", set_value(path, value))
    with pytest.raises(CheckpointError, match=names) as error:
        load_encoder(tmp_path)
    assert error.value.exit_code == 3


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    """Steps 1 and 2, each with an encoder."""
    folder = tmp_path_factory.mktemp("good-run")
    params = {"w": np.ones(3, np.float32)}
    with Store(folder, best="min") as store:
        for step in (1, 2):
            artefact = (params, {}, encoder_manifest(step=step))
            tree = {"params": {"w": jnp.ones(3) * step}, "step": jnp.int32(step)}
            store.save(step, tree, manifest={}, metric=0.5, encoder=artefact)
    return folder


@pytest.fixture
def run(good_run, tmp_path):
    return shutil.copytree(good_run, tmp_path / "run")


STEPS = [
    ("leaves", ..., "leaves"),
    ("leaves", [], "leaves"),
    ("leaves", {"params/w": {"dtype": "float32"}}, "shape"),
    ("leaves", {"params/w": {"shape": [3], "dtype": "O"}}, "dtype"),
    ("leaves", {"params/w": {"shape": [1] * 65, "dtype": "float32"}}, "leaves"),
    ("leaves", {"params/w": {"shape": [2**40] * 9, "dtype": "float32"}}, "larger"),
    ("leaves", {"params/w": {"shape": ["3"], "dtype": "float32"}}, "shape"),
    (
        "leaves",
        {n: {"shape": [], "dtype": "int32"} for n in ("a", "a/b")},
        "'a/b' is inside",
    ),
    ("leaves", {"/a" * 50_000: {"shape": [], "dtype": "int32"}}, "100000 characters"),
    ("metric", ..., "metric"),
    ("metric", "0.5", "metric"),
    ("best", "up", "best"),
    ("best", ..., "best"),
    ("step", -1, "step"),
    ("step", "2", "step"),
    ("created", 5, "created"),
    ("manifest", None, "manifest"),
]


@pytest.mark.parametrize(("path", "value", "names"), STEPS)
def test_a_sealed_step_that_is_none_is_named_and_the_one_before_used(
    run, path, value, names
):
    step = run / "checkpoints" / "2"
    reseal(step, set_value(path, value))
    fatal = [str(f) for f in inspect.verify(run) if f.fatal]
    assert any("checkpoints/2" in line and names in line for line in fatal)
    assert [row.step for row in inspect.list_steps(run) if row.last] == [1]
    with pytest.raises(CheckpointError):
        inspect.show(run, 2)
    assert inspect.prune(run).untouched == [2]
    assert Store(run, warn=lambda _: None).restore()[0] == 1


@pytest.mark.parametrize("part", ["params", "stats", "ema"])
def test_a_state_with_weights_that_are_not_finite_is_not_continued(tmp_path, part):
    with Store(tmp_path) as store:
        for step, value in ((1, 1.0), (2, np.nan)):
            store.save(step, {part: {"w": jnp.array([1.0, value])}}, manifest={})
    said = []
    assert Store(tmp_path, warn=said.append).restore()[0] == 1
    assert f"'{part}/w': 1 of 2" in said[0]


def test_an_encoder_inside_a_step_may_not_lie_elsewhere(run, tmp_path):
    inner = run / "checkpoints" / "2" / "encoder"
    inner.rename(tmp_path / "elsewhere")
    inner.symlink_to(tmp_path / "elsewhere")
    assert any(f.fatal for f in inspect.verify(run))
    assert read_encoder(run)[2]["trained"] == {"step": 1}
    assert Store(run, warn=lambda _: None).restore()[0] == 1


@pytest.mark.parametrize(
    ("harm", "codes"),
    [
        (lambda step: os.truncate(step / "manifest.json", 9), (0, 3, 3, 0)),
        (lambda step: (step / "manifest.json").unlink(), (0, 2, 3, 0)),
        (lambda step: reseal(step, set_value("leaves", ...)), (0, 3, 3, 0)),
        (lambda step: reseal(step, set_value("metric", [])), (0, 3, 3, 0)),
        (lambda step: (step / "x").symlink_to("/"), (0, 0, 3, 0)),
    ],
    ids=["truncated", "gone", "without leaves", "metric", "link"],
)
def test_the_commands_say_it_and_give_the_exit_code(run, capsys, harm, codes):
    harm(run / "checkpoints" / "2")
    commands = (["list"], ["show", "--step", "2"], ["verify"], ["prune", "--dry-run"])
    for (name, *more), code in zip(commands, codes, strict=True):
        assert main(["checkpoints", name, str(run), *more]) == code, name
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert bool(said.err) == bool(code)


@pytest.mark.timeout(60)
def test_a_model_larger_than_any_memory_is_refused_by_its_shapes(tmp_path):
    """34 thousand million numbers; nothing is made before they are compared."""
    for name, width in (("resnet50", 16.0), ("conv-patches", 1.0)):
        encoder_artefact.write(tmp_path / name, "conv", channels=3)

        def change(content, name=name, width=width):
            content["model"] |= {"name": name, "width": width, "channels": 1024}
            content["model"] |= {"bottleneck": 2**20, "decoder": "light"}
            statistics = {"mean": [0.5] * 1024, "std": [0.5] * 1024, "channels": 1024}
            content["preprocessing"] |= statistics

        reseal(tmp_path / name, change)
        with pytest.raises(CheckpointError, match="missing"):
            load_encoder(tmp_path / name)


def foreign(path, **changes):
    """A VGG-11 of torchvision's names, of ones, with some arrays changed."""
    wanted = known._expected(known._config("vgg11", 32, "frozen"))
    weights = {name: np.ones(leaf.shape) for name, leaf in wanted.items()}
    for name, value in changes.items():
        weights[f"features.0.{name}"].flat[2] = value
    path.write_bytes(encode(weights))
    return weights


def test_thousands_of_foreign_names_are_a_short_message(tiny, tmp_path):
    path = tmp_path / "x.safetensors"
    names = {f"name{n}": np.zeros(1, np.float32) for n in range(5000)}
    path.write_bytes(encode(names))
    with pytest.raises(UserError, match=r"(?s)missing.*and \d+ more") as error:
        known.import_encoder(path, "vgg11", tmp_path / "e", image_size=32)
    assert len(str(error.value)) < 10_000


def test_a_file_larger_than_the_free_memory_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.touch()
    os.truncate(path, files.memory() + 2**32)
    with pytest.raises(CheckpointError, match="expected at most"):
        known.read_weights(path)


@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_foreign_weights_that_are_not_finite_are_not_imported(
    tiny, tmp_path, name, value
):
    path = tmp_path / "x.safetensors"
    foreign(path, **{name: value})
    with pytest.raises(CheckpointError, match=rf"'features.0.{name}': 1 of") as error:
        known.import_encoder(path, "vgg11", tmp_path / "e", image_size=32)
    assert error.value.exit_code == 3
    assert not (tmp_path / "e").exists()


def test_foreign_weights_that_are_finite_are_imported(tiny, tmp_path):
    foreign(tmp_path / "x.safetensors")
    known.import_encoder(
        tmp_path / "x.safetensors", "vgg11", tmp_path / "e", image_size=32
    )
    assert load_encoder(tmp_path / "e").config.name == "vgg11"


@pytest.mark.parametrize("std", [(0.2, 0.0, 0.2), (0.2, -1.0, 0.2), (0.2, np.nan, 1.0)])
def test_a_deviation_that_cannot_be_is_not_imported(tiny, tmp_path, std):
    path = tmp_path / "x.safetensors"
    foreign(path)
    with pytest.raises(UserError, match="standard deviations"):
        known.import_encoder(path, "vgg11", tmp_path / "e", image_size=32, std=std)


def test_one_name_with_and_without_module_is_refused(tmp_path):
    arrays = {name: np.ones(1) for name in ("a", "module.a")}
    (tmp_path / "x.safetensors").write_bytes(encode(arrays))
    with pytest.raises(CheckpointError, match="module"):
        known.read_weights(tmp_path / "x.safetensors")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("make", [_pipe, lambda path: path.symlink_to("/dev/zero")])
def test_foreign_weights_that_are_no_file_are_refused_at_once(tmp_path, name, make):
    make(tmp_path / name)
    command = ["import", str(tmp_path / name), "--model", "resnet18"]
    assert main([*command, "--out", str(tmp_path / "e")]) == 2


SIZES = [7, 8, 2**14, 2**14 + 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("image_size", [8, size]) for size in SIZES),
        *(
            ("channels", count)
            for count in (0, 1, schemas.MOST_CHANNELS, schemas.MOST_CHANNELS + 1)
        ),
        *(("bottleneck", size) for size in (0, 1, 2**20, 2**20 + 1, None)),
        *(("width", width) for width in (0.0, 0.1, 16.0, 16.1)),
        ("decoder", "light"),
    ],
)
def test_settings_and_manifests_know_the_same_bounds(field, value):
    """What a model may be set to is what is read again."""
    stored = {**encoder_manifest()["model"], field: value}
    wrong = schemas.mistakes(stored, schemas.ModelFields)
    # The smallest image is the model's own matter.
    if wrong or value == [8, 7]:
        with pytest.raises(UserError, match=field):
            ModelConfig.from_dict(stored)
    else:
        again = ModelConfig.from_dict(stored).to_dict()
        assert not schemas.mistakes(again, schemas.ModelFields)


def test_the_schemas_have_the_fields_of_what_they_describe():
    for described, schema in (
        (ModelConfig, schemas.ModelFields),
        (Preprocessing, schemas.PreprocessingFields),
        (FeatureInfo, schemas.FeatureInfoFields),
    ):
        fields = {field.name for field in dataclasses.fields(described)}
        # The package of a foreign encoder stands beside the fields.
        extra = {"package"} if described is ModelConfig else set()
        assert fields | extra == set(schema.__struct_fields__)
    heads = {field.name for field in dataclasses.fields(HeadConfig)}
    assert heads | {"class_names", "outputs"} == set(
        schemas.HeadFields.__struct_fields__
    )
