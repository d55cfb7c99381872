"""What happened, in a few words, from exit codes, outputs and weights alone."""

from benchmarks.reliability.jobs import STEPS, End

SAME = "continues, equal bit for bit"
OTHER = "continues, other weights"
AGAIN = "starts again from step 1"


def of_resume(end: End, whole: End) -> str:
    """The same command after a kill, compared with an uninterrupted run."""
    if end.final is None:
        return f"cannot continue: {end.how}"
    if end.began == 0:
        return AGAIN
    assert whole.final is not None
    return SAME if end.final["digest"] == whole.final["digest"] else OTHER


def of_damage(end: End, control: End) -> str:
    """The same command with the newest checkpoint damaged, compared with it intact."""
    assert control.final is not None
    assert control.began is not None
    if end.final is None:
        return f"stops: {end.how}"
    if end.began == 0:
        return AGAIN
    if end.began is not None and end.began < control.began:
        return "the checkpoint before is used"
    same = end.final["digest"] == control.final["digest"]
    return "loaded, no effect" if same else "loaded, wrong weights, no warning"


def of_disk(full: End, after: End | None) -> str:
    """A run with a full disk; if it stopped, the same command with free space."""
    if full.final:
        return "trains on to the end"
    assert after is not None
    first = f"stops: {full.how}"
    if after.final is None:
        return f"{first}; then cannot continue ({after.how})"
    if after.began == 0:
        return f"{first}; then {AGAIN}"
    return f"{first}; then continues"


def of_nan(end: End, after: End | None) -> str:
    """A run with one batch of NaN; if it stopped, the same command without it."""
    if end.final and end.final["finite"]:
        return "leaves the step out"
    if end.final:
        early = end.final["step"] < STEPS
        return f"{'ends early' if early else 'trains on'}, exit code 0, weights NaN"
    assert after is not None
    if after.final is None:
        return f"stops: {end.how}; then cannot continue ({after.how})"
    if not after.final["finite"]:
        return f"stops: {end.how}; then continues from NaN"
    then = AGAIN if after.began == 0 else "continues"
    return f"stops: {end.how}; then {then}"


def of_image(end: End, name: str) -> str:
    """A run with one broken image of this name."""
    said = "named" if name in end.text else "not named"
    if end.final:
        return f"trains on, file {said}"
    when = "during training" if end.trained else "before training"
    return f"{end.how} {when}, file {said}"


def of_name(end: End, expected: int) -> str:
    """A run with a file or folder whose name is not UTF-8."""
    if end.final is None:
        when = "during training" if end.trained else "before training"
        return f"{end.how} {when}"
    if end.images is not None and end.images < expected:
        return "left out without a word"
    return "works"
