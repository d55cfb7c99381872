import json

import numpy as np
import pytest
from PIL import Image

from afterimage.checkpoints.errors import CheckpointError
from afterimage.commands import evaluate
from afterimage.data.views import two_views
from afterimage.encoder import load_encoder
from afterimage.errors import DataError, UserError
from afterimage.evaluate_encoder import _short, evaluate_encoder
from afterimage.evaluation import label_free_report
from afterimage.evaluation.configs import EvaluateConfig
from tests import encoder_artefact
from tests.encoder_artefact import pictures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder_artefact.write(folder / "encoder")
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return encoder_artefact.shades(tmp_path_factory.mktemp("data") / "shades.npz")


ROWS = ("this encoder", "untrained encoder", "HOG", "raw pixels")
QUICK = ["--per-class", "1", "5", "--label-seeds", "2"]


@pytest.mark.slow
def test_an_encoder_beside_pixels_its_untrained_twin_and_another(
    run, data, tmp_path, capsys
):
    out = tmp_path / "figures" / "f.json"
    arguments = ["--from", run, "--data", data, "--out", str(out), "--against", run]
    evaluate.main([*arguments, *QUICK])
    figures = json.loads(out.read_text())
    other = f"against {run}"
    assert set(figures["layers"]) == {*ROWS, other}
    for name in ROWS:
        measured = figures["accuracy"][name]
        assert list(measured) == ["linear probe", "kNN", "ridge"]
        for probe in ("linear probe", "ridge"):  # cosines do not see brightness
            if name != "HOG":  # nor do gradients
                assert measured[probe]["all"]["mean"] > 0.6  # chance is 1/3
        assert list(measured["kNN"]) == ["1", "5", "all"]
    accuracy = figures["accuracy"]
    assert accuracy["this encoder"] == accuracy[other]  # it is the same
    assert figures["layers"]["this encoder"] != figures["layers"]["untrained encoder"]
    text = capsys.readouterr().out
    assert out.with_suffix(".md").read_text() in text + "\n"
    assert f"Written: {out}" in text
    picture = np.asarray(Image.open(out.with_suffix(".png")))
    assert (picture != 255).any(axis=2).mean() > 0.01


@pytest.mark.slow
def test_a_run_keeps_its_scores_and_an_artefact_stays_as_it_is(data, tmp_path, capsys):
    encoder_artefact.write(tmp_path / "encoder")
    arguments = ["--data", data, *QUICK]
    evaluate.main(["--from", str(tmp_path), *arguments])
    assert "FILE.json" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["encoder"]
    (tmp_path / "config.json").write_text("{}")
    evaluate.main(["--from", str(tmp_path), *arguments, "--embedding", "none"])
    found = sorted((tmp_path / "evaluation").iterdir())
    assert [p.suffix for p in found] == [".json", ".md"]
    assert str(found[0]) in capsys.readouterr().out
    assert "shades" in found[0].name


@pytest.mark.slow
def test_a_test_set_is_cut_where_there_is_none(run, tmp_path):
    labels = np.arange(40) % 2
    images = (pictures(40) // 2 + 100 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    config = EvaluateConfig(
        from_=run, data=f"npz:{tmp_path / 'd.npz'}", most=10, embedding="none"
    )
    figures, text = evaluate_encoder(config)
    assert figures["settings"]["test_images"] == 8
    assert figures["layers"]["raw pixels"][0]["test"]["value"] == 1.0
    # Wilson's interval tells that it is eight images.
    assert figures["layers"]["raw pixels"][0]["test"]["low"] == pytest.approx(
        0.6756, abs=1e-3
    )
    assert "10 of 32 training images" in text


def unlabelled(folder, count=30):
    np.savez(folder / "d.npz", images=pictures(count))
    return f"npz:{folder / 'd.npz'}"


def test_without_labels_encoders_are_judged_by_two_views(run, tmp_path, capsys):
    out = tmp_path / "scores.json"
    data = unlabelled(tmp_path)
    evaluate.main(["--from", run, "--data", data, "--against", run, "--out", str(out)])
    figures = json.loads(out.read_text())
    found, other = figures["criteria"], f"against {run}"
    assert list(found) == ["this encoder", "untrained encoder", other]
    assert found["this encoder"] == found[other] != found["untrained encoder"]
    pixels = pictures(30)
    spec = figures["settings"]["augment"]
    assert figures["settings"] == {"images": 30, "augment": spec, "seed": 0}
    vectors = [
        load_encoder(run).features(x) for x in (pixels, *two_views(pixels, spec))
    ]
    assert found["this encoder"] == pytest.approx(label_free_report(*vectors))
    said = capsys.readouterr().out
    assert f"{figures['criterion']} *" in said
    assert "Label some images" in said
    assert out.with_suffix(".png").is_file()


def test_data_that_cannot_score_an_encoder_is_named(run, tmp_path):
    with pytest.raises(DataError, match=r"19 images and no labels.*at least 20"):
        evaluate_encoder(EvaluateConfig(from_=run, data=unlabelled(tmp_path, 19)))
    labels = np.zeros(20, int)
    np.savez(tmp_path / "one.npz", images=pictures(20), labels=labels)
    config = EvaluateConfig(from_=run, data=f"npz:{tmp_path / 'one.npz'}")
    with pytest.raises(DataError, match="two classes"):
        evaluate_encoder(config)


def test_a_name_that_is_no_json_is_refused_before_anything_is_read(tmp_path):
    config = EvaluateConfig(from_=str(tmp_path / "no"), data="nothing", out="f.png")
    with pytest.raises(UserError, match=r"\.json"):
        evaluate_encoder(config)


def test_a_classifier_goes_to_the_stage_that_made_it(tmp_path, data):
    (tmp_path / "classifier").mkdir()
    with pytest.raises(CheckpointError, match="classifier"):
        evaluate.main(["--from", str(tmp_path), "--data", data])


def test_settings_that_cannot_work_are_all_named(run, data):
    with pytest.raises(UserError, match=r"(?s)validation=2.*most=0.*per_class"):
        EvaluateConfig(from_=run, data=data, validation=2.0, most=0, per_class=(0,))


@pytest.mark.slow
def test_an_encoder_is_scored_by_several_views_and_says_so(run, data):
    def scored(**settings):
        config = EvaluateConfig(
            from_=run, data=data, per_class=(), embedding="none", **settings
        )
        return evaluate_encoder(config)

    (one, said), (several, told) = scored(), scored(views="flip", grid_3=True)
    assert (one["settings"]["views"], several["settings"]["views"]) == ("none", "flip")
    note = "several views of each image (flip)"
    assert note in told
    assert note not in said
    # Pixels are images as they are.
    assert one["layers"]["raw pixels"] == several["layers"]["raw pixels"]
    first, second = (each["layers"]["this encoder"] for each in (one, several))
    assert first != second
    added = {row["layer"] for row in second} - {row["layer"] for row in first}
    missing = "no grid-3"
    assert (missing in told) == (not added)
    assert all(layer.endswith("grid-3") for layer in added)


def test_a_folder_without_an_encoder_is_named(data, tmp_path):
    with pytest.raises(CheckpointError, match="no encoder"):
        evaluate.main(["--from", str(tmp_path), "--data", data])


def test_a_spec_of_many_archives_fits_the_picture():
    name = "zip:" + ",".join(f"photos/train-{i}.zip" for i in range(9)) + " [test]"
    short = _short(name)
    assert len(short) <= 83
    assert short.startswith("zip:photos/train-0.zip,")
    assert short.endswith("photos/train-8.zip [test]")
    assert _short("digits [test]") == "digits [test]"
