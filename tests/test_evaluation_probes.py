import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from afterimage.errors import UserError
from afterimage.evaluation import logistic, probes, spectrum
from afterimage.evaluation.probes import probe_report
from afterimage.evaluation.representations import folds_of
from afterimage.evaluation.spectrum import Moments, alignment_matrix, linear_cka


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    return x[:600], y[:600], x[600:900], y[600:900]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_agrees_with_scikit_learn(digits, k):
    train, labels, test, _ = digits
    reference = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train, labels)
    ours = probes.knn_predict(train, labels, test, k=k)
    np.testing.assert_array_equal(ours, reference.predict(test))


def test_knn_in_chunks_is_knn_at_once(digits, monkeypatch):
    train, labels, test, truth = digits
    whole = probes.knn_predict(train, labels, test)
    monkeypatch.setattr(probes, "_BLOCK_BYTES", 4 * len(train) * 7)  # 7 queries a chunk
    np.testing.assert_array_equal(probes.knn_predict(train, labels, test), whole)
    assert probes.knn_accuracy(train, labels, test, truth) == np.mean(whole == truth)


def test_knn_weighs_by_similarity_and_breaks_ties_downwards():
    train = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    # By count class 1 wins 2:1; by weight the near one does.
    query = np.array([[1, 0.1]], np.float32)
    assert probes.knn_predict(train, np.array([0, 1, 1]), query, k=3).tolist() == [0]
    tie = probes.knn_predict(
        train[:2], np.array([3, 1]), np.ones((1, 2), np.float32), k=2
    )
    assert tie.tolist() == [1]


def test_knn_takes_more_neighbours_than_there_are_zeros_jax_and_no_queries():
    train = jnp.array([[1.0, 0], [0, 1]])
    got = probes.knn_predict(train, jnp.array([0, 1]), jnp.zeros((1, 2)), k=50)
    assert got.tolist() == [0]
    none = probes.knn_predict(train, jnp.array([0, 1]), np.zeros((0, 2), np.float32))
    assert none.shape == (0,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_labels": np.array([0, 1])}, "3 feature vectors but 2 labels"),
        ({"train_labels": np.array([0, -1, 1])}, "1 unlabelled"),
        ({"features": np.full((1, 2), np.nan, np.float32)}, "not finite"),
        ({"features": np.zeros((1, 3), np.float32)}, "one encoder"),
        ({"k": 0}, "k=0"),
    ],
)
def test_knn_says_what_is_wrong(change, says):
    good = {
        "train_features": np.ones((3, 2), np.float32),
        "train_labels": np.array([0, 1, 2]),
        "features": np.ones((1, 2), np.float32),
    }
    with pytest.raises(UserError, match=says):
        probes.knn_predict(**(good | change))


def test_every_mismatch_is_reported_at_once():
    features = np.full((3, 2), np.inf, np.float32)
    with pytest.raises(UserError) as error:
        probes.knn_accuracy(features, np.array([0, 1, 2]), features, np.array([0, -1]))
    for part in ("3 feature vectors but 2 labels", "not finite", "unlabelled"):
        assert part in str(error.value)


@pytest.mark.parametrize("dimensions", [64, 20], ids=["tall", "narrow"])
@pytest.mark.parametrize("n", [40, 600], ids=["few", "many"])
def test_ridge_agrees_with_scikit_learn(digits, n, dimensions):
    train, labels, test, _ = digits
    train, labels = train[:n, :dimensions].astype(np.float64), labels[:n]
    test = test[:, :dimensions].astype(np.float64)
    probe = probes.fit_ridge(train, labels)
    scaler = StandardScaler().fit(train)
    targets = np.eye(10)[labels]
    chosen = RidgeCV(alphas=np.array(probes.PENALTIES) * n)
    chosen.fit(scaler.transform(train), targets)
    assert probe.chosen * n == pytest.approx(chosen.alpha_)
    reference = Ridge(alpha=chosen.alpha_).fit(scaler.transform(train), targets)
    np.testing.assert_allclose(
        probe.scores(test), reference.predict(scaler.transform(test)), atol=1e-8
    )


def test_leave_one_out_is_what_leaving_one_out_gives(digits):
    x, labels = digits[0][:25, 26:31].astype(np.float64), digits[1][:25]
    x = (x - x.mean(0)) / x.std(0)
    y = np.eye(10)[labels]
    energy, z, _ = probes.principal(x)
    targets = y - y.mean(0)
    closed = probes._left_out(energy, z, z.T @ targets, targets, 0.1)
    error = 0.0
    for i in range(25):
        rest = np.arange(25) != i
        model = Ridge(alpha=0.1 * 25).fit(x[rest], y[rest])
        error += ((y[i] - model.predict(x[i : i + 1])[0]) ** 2).sum()
    assert closed == pytest.approx(error)


def test_ridge_with_constant_features_one_class_and_one_example():
    x = np.full((4, 3), 0.1, np.float32)
    x[:, 0] = [0, 1, 0, 1]
    labels = np.array([0, 1, 0, 1])
    assert probes.fit_ridge(x, labels).predict(x).tolist() == labels.tolist()
    assert probes.fit_ridge(x, np.zeros(4, int)).predict(x).tolist() == [0, 0, 0, 0]
    single = probes.fit_ridge(x[:1], labels[1:2])
    assert single.predict(x).tolist() == [1, 1, 1, 1]


def test_ridge_refuses_bad_penalties(digits):
    with pytest.raises(UserError, match="penalties"):
        probes.fit_ridge(digits[0], digits[1], penalties=(0.0,))


@given(st.integers(1, 6), st.floats(0.1, 100), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_effective_rank_of_orthogonal_directions_is_their_number(rank, scale, seed):
    rng = np.random.default_rng(seed)
    plus = np.eye(8)[:, :rank] @ np.eye(rank, 8)
    x = np.concatenate([plus[:rank], -plus[:rank]]) * scale  # centred, equal energies
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    shift = rng.normal(size=8)
    assert spectrum.effective_rank(x @ turn + shift) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_by_hand():
    # Singular values 3 and 1 (up to a factor): p = 3/4, 1/4.
    x = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert spectrum.effective_rank(x) == pytest.approx(np.exp(entropy))


def test_collapse_is_seen():
    x = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    assert spectrum.collapsed_dimensions(x) == 0
    x[:, 1] = 7.0
    x[:, 3] *= 1e-5
    assert spectrum.collapsed_dimensions(x) == 2
    equal = np.broadcast_to(x[:1], (50, 5))
    assert spectrum.collapsed_dimensions(equal) == 5
    assert spectrum.effective_rank(equal) == 0
    with pytest.raises(UserError, match="finite"):
        spectrum.effective_rank(np.full((2, 2), np.nan))


def test_probe_report_sets_representations_side_by_side(digits):
    train, labels, test, truth = digits
    noise = np.random.default_rng(0).normal(size=(900, 64)).astype(np.float32)
    report = probe_report(
        {"raw pixels": (train, test), "noise": (noise[:600], noise[600:])},
        (labels, truth),
    )
    assert json.loads(json.dumps(report)) == report
    pixels, nothing = report["raw pixels"], report["noise"]
    assert pixels["knn"]["value"] == probes.knn_accuracy(train, labels, test, truth)
    assert pixels["ridge"]["value"] == probes.ridge_accuracy(train, labels, test, truth)
    assert pixels["knn"]["low"] > 0.8 > 0.3 > nothing["knn"]["high"]
    assert pixels["ridge"]["low"] > 0.8 > 0.3 > nothing["ridge"]["high"]


def test_k_is_the_one_that_leaving_one_out_prefers(digits):
    train, labels = digits[0][:200], digits[1][:200]
    accuracy = {}
    for k in probes.NEIGHBOURS[:-1]:  # 200 others there are not
        hits = [
            probes.knn_predict(
                np.delete(train, i, 0), np.delete(labels, i), train[[i]], k=k
            )
            == labels[i]
            for i in range(200)
        ]
        accuracy[k] = np.mean(hits)
    best = max(accuracy, key=lambda k: (accuracy[k], -k))
    assert probes.choose_k(train, labels) == best
    assert probes.choose_k(train[:1], labels[:1]) == 1


def batches(x, sizes=(7, 1, 0, 300)):
    """Moments of x, added in uneven batches."""
    moments, start = Moments(x.shape[1]), 0
    for size in [*sizes, len(x)]:
        moments.add(x[start : start + size])
        start += size
    return moments


@given(st.integers(1, 40), st.floats(-1e3, 1e3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_moments_of_batches_are_those_of_all_at_once(n, shift, seed):
    x = np.random.default_rng(seed).normal(size=(n, 3)) + shift
    moments = batches(x, sizes=(5, 0, 1))
    assert moments.count == n
    np.testing.assert_allclose(moments.mean, x.mean(0), atol=1e-9)
    np.testing.assert_allclose(moments.deviation, x.std(0), atol=1e-7)
    centred = x - x.mean(0)
    np.testing.assert_allclose(moments.scatter, centred.T @ centred, atol=1e-7)


def test_moments_may_be_read_between_batches():
    """What waits to be merged is never forgotten, nor counted twice."""
    x = np.random.default_rng(0).normal(size=(9, 50)).astype(np.float32)
    moments = Moments(50)
    for n in range(3):
        moments.add(x[3 * n : 3 * n + 3])
        so_far = x[: 3 * n + 3]
        np.testing.assert_allclose(moments.mean, so_far.mean(0), atol=1e-6)
        assert moments.count == len(so_far)
    centred = x - x.mean(0)
    np.testing.assert_allclose(moments.scatter, centred.T @ centred, atol=1e-5)


def test_streamed_ridge_and_spectrum_are_those_in_memory(digits):
    train, labels, test, _ = digits
    both = np.concatenate([train, np.eye(10)[labels]], axis=1)
    probe = probes.StreamedRidge(batches(both), 10).probe(0.1)
    at_once = probes.fit_ridge(train, labels, penalties=(0.1,))
    np.testing.assert_allclose(probe.scores(test), at_once.scores(test), atol=1e-9)
    found = spectrum.spectrum_report(batches(both), 64)
    assert found["effective_rank"] == pytest.approx(spectrum.effective_rank(train))
    assert found["collapsed"] == spectrum.collapsed_dimensions(train) > 0


def test_streamed_ridge_takes_the_penalty_with_the_least_held_out_error(digits):
    x, y = digits[0], np.eye(10)[digits[1]]
    both = np.concatenate([x, y], axis=1)
    fit, held = batches(both[:100], (9,)), batches(both[100:], (50,))
    chosen = probes.StreamedRidge(fit, 10).choose(held)
    error = {}
    for penalty in probes.PENALTIES:
        probe = probes.fit_ridge(x[:100], digits[1][:100], penalties=(penalty,))
        error[penalty] = np.sum((probe.scores(x[100:]) - y[100:]) ** 2)
        streamed = probes.StreamedRidge(fit, 10).probe(penalty)
        assert probes._squared_error(streamed, held) == pytest.approx(error[penalty])
    assert chosen.chosen == min(error, key=error.__getitem__)


@pytest.mark.parametrize("n", [40, 600], ids=["fewer than dimensions", "more"])
@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_logistic_regression_agrees_with_scikit_learn(digits, n, strength):
    train, labels, test, _ = digits
    probe = logistic.fit_logistic(train[:n], labels[:n], strengths=(strength,))
    scaler = StandardScaler().fit(train[:n])
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(train[:n]), labels[:n])
    x, wanted = scaler.transform(train[:n]), reference.coef_.T
    least = logistic_objective(x, labels[:n], strength, wanted, reference.intercept_)
    found = logistic_objective(x, labels[:n], strength, probe.weights, probe.intercept)
    assert found <= (1 + 2e-4) * least
    np.testing.assert_allclose(probe.weights, wanted, atol=0.05 * np.abs(wanted).max())
    same = probe.predict(test) == reference.predict(scaler.transform(test))
    assert np.mean(same) > 0.98


def logistic_objective(x, labels, strength, weights, intercept):
    logits = x @ weights + intercept
    own = logits[np.arange(len(x)), labels]
    loss = np.sum(special.logsumexp(logits, axis=1) - own)
    return loss + np.sum(weights**2) / (2 * strength)


@pytest.mark.parametrize("strength", logistic.STRENGTHS)
@pytest.mark.parametrize(("n", "d"), [(60, 200), (150, 40)])
def test_logistic_regression_reaches_the_optimum(n, d, strength):
    """SciPy's on the same problem, in float64; weak penalties leave so
    little of the objective that an absolute tolerance would stop too early."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    x = rng.normal(size=(n, d)) + 0.5 * rng.normal(size=(4, d))[labels]
    x = x.astype(np.float32)
    scaled = StandardScaler().fit_transform(x.astype(np.float64))
    probe = logistic.fit_logistic(x, labels, strengths=(strength,))
    found = logistic_objective(scaled, labels, strength, probe.weights, probe.intercept)

    def objective(flat):
        solution = flat.reshape(d + 1, 4)
        logits = scaled @ solution[:-1] + solution[-1]
        p = special.softmax(logits, axis=1) - np.eye(4)[labels]
        slope = np.vstack([scaled.T @ p + solution[:-1] / strength, p.sum(0)])
        value = logistic_objective(scaled, labels, strength, *np.split(solution, [d]))
        return value, slope.ravel()

    options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-8}
    start = np.zeros((d + 1) * 4)
    least = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options=options
    ).fun
    assert least * (1 - 1e-6) <= found <= least * (1 + 2e-4)


def test_logistic_regression_needs_few_steps_where_features_are_alike(monkeypatch):
    """Along principal directions, scaled by curvature: fewer than L-BFGS as it is.

    By a factor of 1.4 over five draws, and of about 2 in the first.
    """
    import scipy.optimize

    minimise = scipy.optimize.minimize
    ours, plain = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mix = np.geomspace(1, 0.01, 40)[:, None] * rng.normal(size=(40, 40))
        x = (rng.normal(size=(500, 40)) @ mix).astype(np.float32)
        labels = (x @ rng.normal(size=(40, 5)) + rng.normal(size=(500, 5))).argmax(1)
        found = []

        def counted(*args, found=found, **kwargs):
            found.append(minimise(*args, **kwargs))
            return found[-1]

        with monkeypatch.context() as patch:
            patch.setattr(scipy.optimize, "minimize", counted)
            logistic.fit_logistic(x, labels, strengths=(10.0,))
        scaled = StandardScaler().fit_transform(x)
        reference = LogisticRegression(C=10.0, tol=1e-4, max_iter=5000)
        ours.append(found[0].nit)  # what follows polishes the solution
        plain.append(reference.fit(scaled, labels).n_iter_[0])
    assert 1.9 * ours[0] <= plain[0]
    assert 1.3 * sum(ours) <= sum(plain)


def test_c_is_the_one_with_the_best_folds(digits):
    train, labels = digits[0][:150], digits[1][:150]
    folds = folds_of(labels, seed=3)
    probe = logistic.fit_logistic(train, labels, folds=folds)
    scale = {"mean": train.mean(0), "deviation": train.std(0)}
    right = dict.fromkeys(logistic.STRENGTHS, 0)
    for strength in logistic.STRENGTHS:
        for fold in range(5):
            held = folds == fold
            part = logistic.fit_logistic(
                train[~held],
                labels[~held],
                strengths=(strength,),
                moments=(scale["mean"], scale["deviation"]),
            )
            right[strength] += np.sum(part.predict(train[held]) == labels[held])
    assert right[probe.chosen] >= max(right.values()) - 1  # float32 path against cold
    # Refitted to all: the same as a fit with that C alone.
    alone = logistic.fit_logistic(train, labels, strengths=(probe.chosen,))
    assert np.mean(probe.predict(digits[2]) == alone.predict(digits[2])) > 0.98


def test_weak_penalties_are_left_out_once_one_fell_behind(monkeypatch):
    """Of labels that are partly chance a strong penalty knows best."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 100)).astype(np.float32)
    chance, truth = rng.random(400) < 0.3, x[:, :5].sum(1) > 0
    labels = np.where(chance, rng.integers(0, 2, 400), truth)
    scores, validation = [], logistic._validation

    def noted(*args):
        scores.append(validation(*args))
        return scores[-1]

    monkeypatch.setattr(logistic, "_validation", noted)
    probe = logistic.fit_logistic(x, labels, folds=folds_of(labels, seed=0))
    best = max(scores)
    assert probe.chosen == logistic.STRENGTHS[scores.index(best)]
    assert len(scores) < len(logistic.STRENGTHS)
    behind = [all(np.array(score) < np.array(best)) for score in scores]
    assert behind.index(True, scores.index(best)) == len(scores) - 1


def test_without_folds_c_is_the_default(digits):
    train, labels = digits[0][:10], np.arange(10)
    assert folds_of(labels, seed=0).tolist() == [-1] * 10
    probe = logistic.fit_logistic(train, labels, folds=folds_of(labels, seed=0))
    assert probe.chosen == logistic.DEFAULT_STRENGTH
    assert probe.predict(train).tolist() == labels.tolist()
    with pytest.raises(UserError, match="strengths"):
        logistic.fit_logistic(train, labels, strengths=())


def test_folds_are_stratified_and_one_is_held_out_of_many():
    labels = np.repeat([0, 1, 2], [10, 5, 12])
    folds = folds_of(labels, seed=0)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 1
    many = folds_of(np.arange(1000) % 4, seed=0)
    assert sorted(set(many.tolist())) == [-1, 0]
    assert (many == 0).sum() == 200


@given(st.floats(0.01, 100), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_cka_is_invariant_to_turns_scales_and_shifts(scale, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(30, 7))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert linear_cka(x, x @ turn * scale + 3) == pytest.approx(1)
    assert linear_cka(x @ turn * scale + 3, y) == pytest.approx(linear_cka(x, y))
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
    # Its definition by Gram matrices: HSIC normalised.
    centre = np.eye(30) - 1 / 30
    k, m = (centre @ (a @ a.T) @ centre for a in (x, y))
    wanted = np.sum(k * m) / np.sqrt(np.sum(k * k) * np.sum(m * m))
    assert linear_cka(x, y) == pytest.approx(wanted)


def test_cka_of_unlike_and_of_constant_layers():
    x = np.array([[1.0, 0], [-1, 0], [0, 0], [0, 0]])
    y = np.array([[0.0], [0], [1], [-1]])
    side = np.concatenate([x, y, np.ones((4, 1))], axis=1)
    found = alignment_matrix(batches(side, (3,)), [2, 1, 1])
    np.testing.assert_allclose(found, np.diag([1.0, 1.0, 0.0]), atol=1e-12)
    with pytest.raises(UserError, match="finite"):
        linear_cka(x * np.nan, y)
