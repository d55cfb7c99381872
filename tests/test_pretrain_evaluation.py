"""What evaluations look at: as much as a run can afford, and everything at its end."""

import pytest

from afterimage.pretrain.evaluation import EvaluationBudget


def due(budget: EvaluationBudget, images: int, before: int = 1) -> list[int]:
    numbers = range(1, budget.evaluations + 1)
    return [number for number in numbers if budget.due(number, images, before)]


@pytest.mark.parametrize("trained", [25_600, 150_000, 1_000_000])
@pytest.mark.parametrize("evaluations", [1, 10, 100])
def test_evaluations_cost_a_twentieth_of_a_run(trained, evaluations):
    """In images: a third of a training step's for the loss, a sixth for features."""
    budget = EvaluationBudget(trained, evaluations)
    losses = evaluations * budget.loss_images / 3
    assert losses <= 0.021 * trained or budget.loss_images == 256
    for images in (budget.images, 600):
        times = len(due(budget, images))
        assert (times + 1) * images / 6 <= 0.03 * trained or times == 1


def test_short_runs_look_at_a_few_images_and_long_ones_at_all():
    short, long = EvaluationBudget(1_000, 10), EvaluationBudget(10_000_000, 10)
    assert (short.loss_images, short.images) == (256, 1_000)
    assert long.loss_images > 50_000
    assert long.images > 100_000


@pytest.mark.parametrize(
    ("trained", "before", "numbers"),
    [
        (0, 1, [10]),
        (36_000, 1, [5, 10]),
        (36_000, 0, [4, 7, 10]),
        (900_000, 1, list(range(1, 11))),
    ],
)
def test_features_are_computed_evenly_and_at_the_end(trained, before, numbers):
    assert due(EvaluationBudget(trained, 10), 2_000, before) == numbers
