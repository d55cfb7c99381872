import concurrent.futures
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import afterimage
from afterimage.checkpoints.errors import CheckpointError
from afterimage.encoder import VECTORS, Encoder
from afterimage.errors import UserError
from afterimage.models import Network, build_encoder, pool_features
from afterimage.models.heads import VIEWS
from tests import encoder_artefact
from tests.encoder_artefact import pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def encoder(run):
    return afterimage.load_encoder(run)


@pytest.fixture
def compilations():
    """One entry for each program that XLA compiles, whatever it is."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_features_are_the_network_on_normalised_images(encoder):
    x = pictures(5)
    mean, std = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.25, 0.3])
    normalised = (x / np.float32(255) - mean) / std
    forward = jax.jit(lambda *args: encoder.network.apply(*args)[0])
    maps = forward(encoder.params, encoder.stats, normalised)
    np.testing.assert_allclose(
        encoder.features(x), np.asarray(maps[-1]).mean((1, 2)), atol=1e-5
    )
    for ours, theirs in zip(encoder.feature_maps(x), maps, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_feature_info_describes_the_maps(encoder):
    maps = encoder.feature_maps(pictures(3))
    for info, array in zip(encoder.feature_info, maps, strict=True):
        side = -(-16 // info.stride)
        assert array.shape == (3, side, side, info.channels)
        assert array.dtype == np.float32
    assert encoder.features(pictures(3)).shape == (3, encoder.num_features)


@pytest.mark.parametrize("pool", VECTORS)
def test_vectors_are_what_is_asked_for_of_the_maps(encoder, pool):
    x = pictures(5)
    maps = [jnp.asarray(m) for m in encoder.feature_maps(x)]
    want = pool_features(maps, "last" if pool == "vector" else pool)
    found = encoder.features(x, pool=pool)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert encoder.vector_size(pool) == found.shape[1]
    (streamed,) = encoder.stream([x], pool=pool)
    np.testing.assert_array_equal(streamed, found)


@pytest.mark.parametrize("views", VIEWS)
def test_vectors_may_be_the_mean_over_views(encoder, views):
    x = pictures(5)
    each = [encoder.features(np.asarray(view)) for view in VIEWS[views](jnp.asarray(x))]
    found = encoder.features(x, views=views, batch_size=4)
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-5)
    assert not np.allclose(found, each[0], atol=1e-4)


@given(
    st.integers(0, 40), st.sampled_from([1, 4, 16]), st.sampled_from([np.uint8, float])
)
@settings(max_examples=15, deadline=None)
def test_numbers_do_not_depend_on_the_batching(encoder, n, batch_size, kind):
    x = pictures(n)
    x = x if kind is np.uint8 else x.astype(np.float64) / 255
    whole = encoder.features(x, batch_size=64)
    parts = encoder.features(x, batch_size=batch_size)
    assert whole.shape == parts.shape == (n, encoder.num_features)
    assert whole.dtype == parts.dtype == np.float32
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    if n:
        one = encoder.features(x[n // 2])
        np.testing.assert_allclose(one, whole[n // 2 : n // 2 + 1], atol=1e-5)


def test_uint8_and_float_jax_and_lists_agree(encoder):
    x = pictures(6)
    want = encoder.features(x)
    for same in (
        x / 255,
        (x / 255).astype(np.float32),
        jnp.asarray(x),
        list(x),
        tuple(x),
        [x[0] / 255, *x[1:]],
    ):
        np.testing.assert_allclose(encoder.features(same), want, atol=1e-5)


@pytest.mark.parametrize("call", ["features", "feature_maps"])
def test_a_ragged_last_batch_is_never_compiled_again(run, compilations, call):
    function = getattr(afterimage.load_encoder(run), call)
    function(pictures(64), batch_size=16)
    assert len(compilations) == 1
    for n in (16, 17, 31, 40, 64):
        function(pictures(n), batch_size=16)
    assert len(compilations) == 1
    # Fewer images than a batch: padded to 1, 2, 4 or 8.
    for n in range(1, 16):
        function(pictures(n), batch_size=16)
    assert len(compilations) == 5


def test_other_sizes_are_resized_unless_told_otherwise(encoder):
    x = pictures(2, (40, 24))
    resized = encoder.preprocessing.fit(x)
    np.testing.assert_array_equal(encoder.features(x), encoder.features(resized))
    native = encoder.feature_maps(x, resize=False)[-1]
    stride = encoder.feature_info[-1].stride
    assert native.shape[1:3] == (40 // stride, 24 // stride)
    features = encoder.features(x, resize=False)
    np.testing.assert_allclose(features, native.mean((1, 2)), atol=1e-5)


def test_a_list_of_differing_sizes_is_each_image_alone(encoder):
    images = [
        pictures(1, size, seed=i)[0] for i, size in enumerate([(16, 16), (9, 50)])
    ]
    images.append(images[0][..., :1] / 255)  # grey, float
    got = encoder.features(images)
    for row, image in zip(got, images):
        np.testing.assert_allclose(row, encoder.features(image)[0], atol=1e-5)


def test_no_images_give_no_rows(encoder):
    for none in ([], np.zeros((0, 16, 16, 3), np.uint8), np.zeros((0, 30, 20, 3))):
        assert encoder.features(none).shape == (0, encoder.num_features)
        assert [len(a) for a in encoder.feature_maps(none)] == [0, 0, 0]


def test_grey_and_colour_turn_into_each_other(encoder, tmp_path):
    grey = pictures(3, channels=1)
    np.testing.assert_array_equal(
        encoder.features(grey), encoder.features(grey.repeat(3, -1))
    )
    encoder_artefact.write(tmp_path / "encoder", channels=1)
    one = afterimage.load_encoder(tmp_path)
    np.testing.assert_allclose(
        one.features(grey.repeat(3, -1)), one.features(grey), atol=1e-5
    )


_GOOD = np.full((2, 16, 16, 3), 0.5)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (_GOOD * 3, r"0.*1"),
        (_GOOD - 1, r"0.*1"),
        (np.where(np.arange(3) == 1, np.nan, _GOOD), "2 of 2 images.*NaN"),
        (np.full_like(_GOOD, np.inf), r"\[0, 1\]"),
        (_GOOD[..., :2], "2 channels"),
        (_GOOD[0, 0], r"\(16, 3\)"),
        (_GOOD[..., 0], r"images\[\.\.\., None\]"),
        (_GOOD.transpose(0, 3, 1, 2), "transpose"),
        (_GOOD[None], r"\(1, 2, 16, 16, 3\)"),
        (_GOOD.astype(np.int64), "int64"),
        (_GOOD.astype(bool), "bool"),
        (_GOOD[:, :0], "no pixels"),
        ([_GOOD[0, :, :0]], "no pixels"),
        (np.ma.masked_less(_GOOD, 0.6), "1536 values are masked"),
        ([np.ma.masked_less(_GOOD[0], 0.6)], "768 values are masked"),
        ("photo.jpg", "expected uint8"),
        ([_GOOD[0], _GOOD[0, :, :, 0]], r"1: \(16, 16\)"),
        (None, "expected uint8"),
    ],
)
def test_what_is_no_image_is_named(encoder, images, says):
    with pytest.raises(UserError, match=says):
        encoder.features(images)


def test_sizes_that_cannot_go_through_are_named(encoder):
    with pytest.raises(UserError, match="8 px"):
        encoder.features(pictures(1, (7, 20)), resize=False)
    mixed = [pictures(1)[0], pictures(1, (20, 20))[0]]
    with pytest.raises(UserError, match=r"\(16, 16\), \(20, 20\)"):
        encoder.features(mixed, resize=False)
    with pytest.raises(UserError, match="batch_size=0"):
        encoder.features(pictures(1), batch_size=0)
    with pytest.raises(UserError, match="pool='mean' must be one of vector, last"):
        encoder.features(pictures(1), pool="mean")
    with pytest.raises(UserError, match="views='two' must be one of none, flip"):
        encoder.features(pictures(1), views="two")


def test_a_bottleneck_is_the_feature_vector_at_the_trained_size(tmp_path):
    encoder_artefact.write(tmp_path / "encoder", bottleneck=10)
    encoder = afterimage.load_encoder(tmp_path)
    assert encoder.features(pictures(2, (30, 30))).shape == (2, 10)
    with pytest.raises(UserError, match="bottleneck"):
        encoder.features(pictures(2, (32, 32)), resize=False)


@pytest.mark.parametrize("name", ["conv-classic", "conv"])
def test_every_family_loads_with_the_structure_it_was_saved_with(tmp_path, name):
    config = encoder_artefact.write(tmp_path / "e", name, norm="batch")
    encoder = afterimage.load_encoder(tmp_path / "e")
    assert encoder.config == config
    assert encoder.stats
    real = Network.create(build_encoder(config, rngs=nnx.Rngs(1)))
    assert encoder.network == real[0]
    shapes = jax.tree.map(jnp.shape, (encoder.params, encoder.stats))
    assert shapes == jax.tree.map(jnp.shape, (real[1], real[2]))


def test_apply_is_pure_inside_ones_own_jit(encoder):
    x = pictures(4)

    @jax.jit
    def norm(params, images):
        return (encoder.apply(params, images) ** 2).sum()

    want = (encoder.features(x) ** 2).sum()
    assert float(norm(encoder.params, x)) == pytest.approx(float(want), rel=1e-5)
    slope = jax.grad(norm)(encoder.params, x)
    assert jax.tree.structure(slope) == jax.tree.structure(encoder.params)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope))
    shapes = jax.eval_shape(encoder.apply_maps, encoder.params, x)
    assert [s.shape[-1] for s in shapes] == [f.channels for f in encoder.feature_info]


def test_threads_share_one_encoder(encoder):
    sets = [pictures(n, seed=n) for n in range(1, 25)]
    want = [encoder.features(x) for x in sets]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: encoder.features(x, batch_size=8), sets))
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_stream_reads_ahead_and_keeps_order(encoder):
    x, read = pictures(40), []

    def batches():
        for start in range(0, 40, 8):
            read.append(start)
            yield x[start : start + 8]

    stream = encoder.stream(batches(), batch_size=8)
    first = next(stream)
    assert read == [0, 8, 16]  # two more are under way, not all
    np.testing.assert_allclose(
        np.concatenate([first, *stream]), encoder.features(x), atol=1e-5
    )


def test_progress_counts_images(encoder, capsys, monkeypatch):
    monkeypatch.setattr("afterimage.console._EVERY", 0)
    encoder.features(pictures(20), batch_size=8, progress=True)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        f"features: {n} of 20" for n in (8, 16, 20)
    ]


def test_bfloat16_computes_coarsely_and_returns_float32(run, encoder):
    coarse = afterimage.load_encoder(run, dtype="bfloat16").features(pictures(8))
    exact = encoder.features(pictures(8))
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.05 * np.abs(exact).max()


def test_run_step_and_bare_folder_load_the_same(tmp_path, encoder):
    run = tmp_path / "run"
    encoder.save(run / "checkpoints" / "12" / "encoder")
    x = pictures(3)
    for path in (run / "checkpoints" / "12", run / "checkpoints" / "12" / "encoder"):
        np.testing.assert_array_equal(
            afterimage.load_encoder(path).features(x), encoder.features(x)
        )
    np.testing.assert_array_equal(
        afterimage.load_encoder(str(run)).features(x), encoder.features(x)
    )
    again = afterimage.load_encoder(run)
    assert again.manifest["trained"] == {"steps": 3}
    assert again.manifest["data"]["name"] == "synthetic"


def test_a_path_that_is_no_encoder_says_what_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist.*run folder"):
        afterimage.load_encoder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="encoder/"):
        afterimage.load_encoder(tmp_path)


def test_a_flipped_bit_is_refused(tmp_path, encoder):
    encoder.save(tmp_path / "encoder")
    weights = tmp_path / "encoder" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 4
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        afterimage.load_encoder(tmp_path)


def test_parameters_of_another_model_are_all_listed(encoder):
    params = json.loads(json.dumps({}))
    with pytest.raises(CheckpointError) as error:
        Encoder(params, {}, encoder.manifest)
    assert str(error.value).count("missing") == len(jax.tree.leaves(encoder.params))
    wide = encoder.manifest | {"model": encoder.config.to_dict() | {"width": 1.0}}
    with pytest.raises(CheckpointError, match=r"is float32 \(.*expected float32 \("):
        Encoder(encoder.params, {}, wide)


def test_the_untrained_twin_has_other_numbers_and_the_same_shapes(encoder):
    x = pictures(4)
    twin, other = encoder.untrained(seed=0), encoder.untrained(seed=5)
    assert twin.features(x).shape == encoder.features(x).shape
    assert not np.allclose(twin.features(x), encoder.features(x), atol=1e-3)
    assert not np.allclose(twin.features(x), other.features(x), atol=1e-3)
    assert twin.manifest["trained"] == {"steps": 0, "seed": 0}


def test_an_encoder_says_what_it_is(encoder):
    said = repr(encoder)
    assert encoder.config.name in said
    assert "16 x 16 px, 3 channels" in said
    assert f"{encoder.num_features} features" in said
    assert encoder.manifest["data"]["name"] in said
    assert len(said.splitlines()) <= 3
    probes = {"effective_rank": 2.5, "train": 9, "images": 9, "classes": 3}
    probes["accuracy"] = {"this encoder": {"knn": 0.9}, "raw pixels": {"knn": 0.5}}
    manifest = encoder.manifest | {"probes": probes}
    said = repr(Encoder(encoder.params, encoder.stats, manifest))
    assert "kNN: 90.0 % (raw pixels 50.0)" in said
