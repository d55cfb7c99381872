"""The table of `docs/guide/which-method.md`: each method beside its control."""

from collections.abc import Sequence

from benchmarks.results import figure, read_results

# (what one has, what one takes, what it costs, (results, table, with it, without it))
GAINS: Sequence[tuple[str, str, str, tuple[str, str, str, str]]] = (
    (
        "digits, one label a class",
        "`full` after pretraining",
        "pretraining, once",
        ("transfer", "few-labels", "full-10", "scratch-10"),
    ),
    (
        "digits, ten a class",
        "`full` after pretraining",
        "pretraining, once",
        ("transfer", "few-labels", "full-100", "scratch-100"),
    ),
    (
        "photos, ten a class",
        "`partial` after pretraining",
        "pretraining, once",
        ("transfer", "few-labels-cifar10", "partial-100", "scratch-100"),
    ),
    (
        "photos, a hundred a class",
        "`full` after pretraining",
        "pretraining, once",
        ("transfer", "few-labels-cifar10", "full-1000", "scratch-1000"),
    ),
    (
        "digits, 6,000 a class",
        "`full` after pretraining",
        "pretraining, once",
        ("representations", "mnist-labels", "best-all", "scratch-all"),
    ),
    (
        "ten a class, the other images without labels",
        "`--unlabelled rest`",
        "two to three times a run",
        ("representations", "mnist-labels", "pseudo-labels-100", "best-100"),
    ),
    (
        "a hundred a class, and the others",
        "`--unlabelled rest`",
        "two to three times a run",
        ("representations", "mnist-labels", "pseudo-labels-1000", "best-1000"),
    ),
    (
        "labels elsewhere, images that look otherwise",
        "`--align mmd`",
        "up to twice a run",
        ("transfer", "mnist-usps-shift", "mmd", "source-only"),
    ),
    (
        "the same, the difference drawn by augmentation",
        "`--unlabelled target`",
        "two to three times a run",
        ("transfer", "mnist-usps", "pseudo-labels", "source-only"),
    ),
    (
        "the same, from the plainer domain to the richer",
        "`--align cdan-e`",
        "up to twice a run",
        ("transfer", "usps-mnist", "cdan-e", "source-only"),
    ),
    (
        "figures on black, the target on photos",
        "preset `adapt-ink`",
        "two to three times a run",
        ("transfer", "mnist-coloured", "ink + pseudo-labels", "source-only"),
    ),
    (
        "a network that must be small",
        "`--teacher`",
        "two and a half times a step",
        ("transfer", "distillation-mnist", "student-distilled", "student"),
    ),
    (
        "the same, with augmentation",
        "`--teacher`",
        "two and a half times a step",
        (
            "transfer",
            "distillation-mnist",
            "student-augmented-distilled",
            "student-augmented",
        ),
    ),
    (
        "classes that come group after group",
        "`--continual replay`",
        "100 images a class, kept",
        ("transfer", "split-mnist-class", "replay", "none"),
    ),
    (
        "tasks with a head each, no image kept",
        "`--continual ewc`",
        "two copies of the model",
        ("transfer", "split-mnist-task", "ewc", "none"),
    ),
    (
        "new classes of one image each",
        "`--meta proto-maml`",
        "four times prototypes",
        (
            "transfer",
            "omniglot-5w1s",
            "proto-maml",
            "frozen encoder, nearest neighbour",
        ),
    ),
    (
        "new classes of five images each",
        "`--meta prototypical`",
        "episodes of classes known",
        (
            "transfer",
            "omniglot-5w5s",
            "prototypical",
            "frozen encoder, nearest neighbour",
        ),
    ),
)


def gains_table() -> str:
    """What each method gained over doing without it, from the other tables' rows."""
    lines = [
        "| what one has | what one takes | with it | without | what it costs |",
        "|---|---|---|---|---|",
    ]
    for situation, method, cost, (file, table, *names) in GAINS:
        rows = [e for e in read_results(file) if e["table"] == table]
        pair = [next(e for e in rows if e["row"] == name) for name in names]
        metric = pair[0]["metric"].split(" on ")[0].removesuffix(", %")
        small = any(entry["mean"] < 1 for entry in pair)
        digits = 2 if small else 1
        better, worse = (figure(entry, digits) for entry in pair)
        lines.append(
            f"| {situation} | {method} | {better} {metric} | {worse} | {cost} |"
        )
    return "\n".join(lines)
