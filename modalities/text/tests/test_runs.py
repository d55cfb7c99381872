"""Runs from the command line and from Python: results, resuming, damage, bad input."""

import csv
import json
import shutil

import numpy as np
import pytest
from afterimage_text import (
    FinetuneConfig,
    PretrainConfig,
    finetune,
    load_text_classifier,
    load_text_encoder,
    pretrain,
)
from afterimage_text.finetuning import groups

from afterimage.checkpoints import CheckpointError
from afterimage.checkpoints.errors import UsageError
from afterimage.checkpoints.weights import read_folder
from afterimage.commands import main
from afterimage.errors import UserError
from afterimage.training.loop import Callbacks

WORDS = {
    "sea": ["wave", "salt", "ship", "sail", "tide"],
    "hill": ["rock", "path", "peak", "goat"],
}
SMALL = {"width": 32, "depth": 1, "length": 12, "batch_size": 8, "tensorboard": False}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """60 texts of two classes, whose words do not overlap."""
    rng, rows = np.random.default_rng(0), []
    for label, words in WORDS.items():
        for _ in range(30):
            rows.append((" ".join(rng.choice(words, 6)), label))
    place = tmp_path_factory.mktemp("table") / "texts.csv"
    with place.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return place


@pytest.fixture(scope="module")
def pretrained(table, tmp_path_factory):
    """A finished pretraining run of four steps."""
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    config = PretrainConfig(table=str(table), out=str(run), steps=4, **SMALL)
    first = pretrain(config)
    assert first.results["validation"].keys() == {"loss", "masked_accuracy"}
    assert pretrain(config).results == first.results  # complete: left unchanged
    return run


class Killed(Exception):
    """Stops a run."""


def killed_at(step):
    def stop(now, _):
        if now == step:
            raise Killed

    return Callbacks(on_checkpoint=stop)


def tensors(folder, kind):
    params, stats, _ = read_folder(folder / kind, kind)
    import jax

    return jax.tree.leaves((params, stats))


def resumed(work, config, kind, tmp_path, at):
    """Runs once through, and once stopped after a step: both give the same bits."""
    make, settings = config
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    work(make(out=str(whole), save_every=at, **settings))
    again = make(out=str(parts), save_every=at, **settings)
    with pytest.raises(Killed):
        work(again, callbacks=killed_at(at))
    work(again)
    for one, other in zip(tensors(whole, kind), tensors(parts, kind), strict=True):
        np.testing.assert_array_equal(one, other)


def test_pretraining_resumes_bit_for_bit(table, tmp_path):
    settings = {"table": str(table), "steps": 2, **SMALL}
    resumed(pretrain, (PretrainConfig, settings), "text-encoder", tmp_path, 1)


@pytest.mark.slow
def test_two_phases_resume_bit_for_bit_at_their_border(table, pretrained, tmp_path):
    small = {k: v for k, v in SMALL.items() if k not in ("width", "depth")}
    settings = {"table": str(table), "from_": str(pretrained), "steps": 6, **small}
    settings |= {"mode": "two-phase", "l2_sp": 0.1, "weight_decay": 0.0}
    resumed(finetune, (FinetuneConfig, settings), "text-classifier", tmp_path, 2)


def test_from_a_table_to_predictions(table, pretrained, tmp_path, capsys):
    out, predictions = tmp_path / "run", tmp_path / "predictions.csv"
    words = f"{table} --from {pretrained} --out {out} --steps 60 --encoder-lr 1"
    words += " --batch-size 8 --length 12 --lr 3e-3 --eval-every 60"
    assert main(["text-finetune", *words.split()]) == 0
    said = capsys.readouterr().out
    assert "test (12 texts): accuracy" in said
    results = json.loads((out / "results.json").read_text())
    assert results["classes"] == ["hill", "sea"]
    assert results["test"]["accuracy"]["value"] > 0.9
    assert len(results["test_ids"]) == 12
    page = (out / "report.html").read_text()
    assert "tested on 20% of each class" in page
    assert (
        main(
            ["text-predict", str(table), "--from", str(out), "--out", str(predictions)]
        )
        == 0
    )
    with predictions.open() as file:
        found = [row["class"] for row in csv.DictReader(file)]
    model = load_text_classifier(str(out))
    texts = ["wave ship sail", "goat peak rock"]
    assert list(model.predict(texts)) == ["sea", "hill"]
    assert model.predict_proba(texts).sum(1) == pytest.approx([1, 1])
    assert np.mean(np.array(found) == np.repeat(["sea", "hill"], 30)) > 0.9


def test_the_probe_leaves_the_encoder_as_it_was(table, pretrained, tmp_path):
    small = {k: v for k, v in SMALL.items() if k not in ("width", "depth")}
    out = tmp_path / "probe"
    config = FinetuneConfig(
        table=str(table), from_=str(pretrained), out=str(out), mode="probe", steps=2,
        **small,
    )  # fmt: skip
    result = finetune(config)
    assert finetune(config).results == result.results  # complete: left unchanged
    first, _, _ = read_folder(pretrained / "text-encoder", "text-encoder")
    after, _, _ = read_folder(out / "text-classifier", "text-classifier")
    for one, other in zip(
        *([*map(np.ravel, _leaves(t["encoder"]))] for t in (first, after))
    ):
        np.testing.assert_array_equal(one, other)  # fmt: skip
    # Padding and the size of a batch do not change a vector.
    encoder, texts = load_text_encoder(str(out)), ["wave", "salt ship sail tide goat"]
    together = encoder.features(texts)
    alone = np.concatenate([encoder.features([t], batch_size=1) for t in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1])


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_lower_blocks_learn_more_slowly():
    found = {group.name: group.lr for group in groups(3, 0.1, 0.5)}
    assert found == pytest.approx(
        {"head": 1, "embeddings": 0.0125}
        | {"block 2": 0.1, "block 1": 0.05, "block 0": 0.025}
    )  # fmt: skip


@pytest.mark.slow
def test_l2_sp_keeps_the_encoder_near_its_start(table, pretrained, tmp_path):
    small = {k: v for k, v in SMALL.items() if k not in ("width", "depth")}
    start, _, _ = read_folder(pretrained / "text-encoder", "text-encoder")
    far = {}
    for weight in (0.0, 100.0):
        out = tmp_path / str(weight)
        finetune(
            FinetuneConfig(
                table=str(table), from_=str(pretrained), out=str(out), steps=20,
                encoder_lr=1.0, weight_decay=0.0, l2_sp=weight, **small,
            )
        )  # fmt: skip
        after, _, _ = read_folder(out / "text-classifier", "text-classifier")
        both = zip(_leaves(start["encoder"]), _leaves(after["encoder"]))
        far[weight] = sum(float(np.square(a - b).sum()) for a, b in both)
    assert 0 < far[100.0] < 0.5 * far[0.0]


def test_a_changed_byte_is_found(pretrained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pretrained, copy)
    weights = copy / "text-encoder" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="bytes have changed"):
        load_text_encoder(str(copy))
    for run, code in ((pretrained, 0), (copy, CheckpointError.exit_code)):
        assert main(["checkpoints", "verify", str(run)]) == code


def hugging_face(folder, **changes):
    """A folder as `transformers` writes it, of one small block."""
    from afterimage_text.bert import BertConfig, fresh
    from afterimage_text.files import their_name
    from afterimage_text.texts import new_tokenizer

    from afterimage.checkpoints.trees import flatten
    from afterimage.checkpoints.weights import encode

    folder.mkdir()
    new_tokenizer(WORDS["sea"], 60).save(str(folder / "tokenizer.json"))
    sizes = BertConfig(vocabulary=60, width=8, depth=1, heads=2, hidden=8, positions=16)
    given = {
        "vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 8,
        "max_position_embeddings": 16, "hidden_act": "gelu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**given, **changes}))
    flat = {path: np.asarray(leaf) for path, leaf in flatten(fresh(sizes, 0)).items()}
    tensors = {
        f"bert.{their_name(p)}": np.array(a.T if p.endswith("kernel") else a, order="C")
        for p, a in flat.items()
    }
    (folder / "model.safetensors").write_bytes(encode(tensors))
    return flat


def test_a_hugging_face_folder_is_read_leaf_for_leaf(tmp_path):
    from afterimage.checkpoints.trees import flatten

    flat = hugging_face(tmp_path / "bert")
    encoder = load_text_encoder(str(tmp_path / "bert"))
    found = flatten(encoder.params["encoder"])
    assert found.keys() == flat.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(found[path], leaf)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"num_attention_heads": 3}, "no multiple of 3 heads"),
        ({"num_hidden_layers": 2}, "blocks/1/.* missing"),
        ({"hidden_size": "8"}, "hidden_size: Expected int"),
        ({"intermediate_size": 9}, r"\(8, 8\)"),
    ],
)
def test_a_folder_of_another_network_is_refused(tmp_path, changes, said):
    hugging_face(tmp_path / "bert", **changes)
    with pytest.raises(CheckpointError, match=said):
        load_text_encoder(str(tmp_path / "bert"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mode": "probe"}, "mode=probe: needs weights"),
        ({"from_": "minilm", "width": 64}, "width=64: only for a new network"),
        ({"from_": "minilm", "mode": "probe", "l2_sp": 0.1}, "l2_sp=0.1: no effect"),
        ({"width": 33}, "width=33"),
        ({"test": 1.0}, "test=1.0"),
        ({"length": 2}, "length=2"),
    ],
)
def test_settings_that_cannot_work(settings, said):
    with pytest.raises(UserError, match=said):
        FinetuneConfig(table="t.csv", out="run", **settings)


def test_one_class_is_refused(tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("text,label\none,a\ntwo,a\n")
    assert main(["text-finetune", str(table), "--out", str(tmp_path / "run")]) == 2
    assert "every text has the label 'a'" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="text-pretrain or text-finetune"):
        load_text_encoder(str(tmp_path))
    with pytest.raises(UsageError, match="finished run of text-finetune"):
        load_text_classifier(str(tmp_path))
