"""A plan as text."""

from collections.abc import Iterator

from afterimage.planning.search import Largest
from afterimage.pretrain.plan import Plan
from afterimage.training.progress import clock


def quantity(value: float | int, unit: str = "", base: int = 1000) -> str:
    """1.5e9 -> "1.50 G"; in powers of 1024 (Ki, Mi, Gi) for a base of 1024."""
    steps = ["", "K", "M", "G", "T", "P"]
    place = 0
    while abs(value) >= base and place < len(steps) - 1:
        value, place = value / base, place + 1
    prefix = steps[place] + ("i" if base == 1024 and place else "")
    digits = 0 if not place else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def gibibytes(value: float | int) -> str:
    """Bytes in GiB or MiB."""
    return quantity(value, "B", 1024)


def plan_text(plan: Plan) -> str:
    """The plan in full, some twenty lines."""
    config, lines = plan.config, []
    options = [f"{config.batch_size} images of {config.image_size} pixels a step"]
    options += [config.precision, "remat" if config.remat else "no remat"]
    if config.accumulate > 1:
        options.append(f"{config.accumulate} micro-batches")
    model = config.model or config.from_
    lines.append(f"{model}, {config.objective.name}, on {plan.devices.title}")
    lines.append(f"  {', '.join(options)}; {plan.parameters:,} parameters")
    lines += ["", *_memory(plan), *_largest(plan), *_work(plan), *_bounds(plan)]
    lines += _measured(plan)
    return "\n".join(lines)


def _memory(plan: Plan) -> Iterator[str]:
    kind, found = plan.devices.kind, plan.forecast
    if found is None:
        assert kind is not None
        needs = f"needs {gibibytes(plan.refused)}" if plan.refused else "needs more"
        yield f"Does not fit: {needs}, and a device has {gibibytes(kind.memory)} "
        yield f"({kind.of_memory}). The compiler gives no further figures"
        return
    yield f"Memory of each device: {gibibytes(found.needs)}"
    for name, size in found.memory.items():
        if size:
            yield f"  {name:20}{gibibytes(size):>12}"
    if kind is not None:
        verdict = "Fits" if plan.fits else "Does not fit"
        yield f"{verdict}: a device has {gibibytes(kind.memory)} ({kind.of_memory})"


def _largest(plan: Plan) -> Iterator[str]:
    for name, one in plan.largest.items():
        yield f"Largest batch, {name}: {_largest_text(one)}"


def _largest_text(one: Largest) -> str:
    if not one.batch:
        return f"none; {one.above} images do not fit"
    above = f"; {one.above} do not fit" if one.above else ""
    return f"{one.batch} images need {gibibytes(one.needs)}{above}"


def _work(plan: Plan) -> Iterator[str]:
    found = plan.forecast
    if found is None:
        return
    yield ""
    yield (
        f"An image: {quantity(found.flops, 'FLOP')}, {quantity(found.bytes, 'B')} read "
        "and written"
    )
    for name, (count, size) in found.collectives.items():
        yield f"A step: {count} {name} of {quantity(size, 'B')} on each device"
    if not found.collectives:
        yield "A step: no collectives"
    calls = found.host_calls
    yield f"A step: calls the host {calls} times" if calls else "A step: no host calls"
    yield f"Compiled in {clock(found.seconds)} here"


def _bounds(plan: Plan) -> Iterator[str]:
    kind, bounds = plan.devices.kind, plan.bounds()
    if kind is None:
        yield "No bound on images/s: there are no peak figures for this device"
        return
    if not bounds:
        return
    least = min(bounds, key=lambda name: bounds[name])
    yield ""
    yield f"Bound: {bounds[least]:,.0f} images/s, set by {least}. It is arithmetic:"
    peak, precision = kind.flops[plan.config.precision], plan.config.precision
    figures = {
        "compute": f"{quantity(peak, 'FLOP/s')} in {precision}",
        "memory": f"{quantity(kind.bandwidth, 'B/s')}, as if nothing stayed on chip",
        "links": f"{quantity(kind.link, 'B/s')} both ways, as rings",
    }
    for name, bound in bounds.items():
        yield f"  {name:8}{bound:>14,.0f} images/s  {figures[name]}"
    yield f"  Peaks: {kind.source}"


def _measured(plan: Plan) -> Iterator[str]:
    if not plan.measured:
        return
    rate, bounds = plan.measured["images_per_second"], plan.bounds()
    share = f", {rate / min(bounds.values()):.0%} of the bound" if bounds else ""
    yield f"Measured here: {rate:,.0f} images/s{share}"
    if "memory" in plan.measured and plan.forecast is not None:
        peak, needs = plan.measured["memory"], plan.forecast.needs
        yield (
            f"Measured here: {gibibytes(peak)} of memory, {peak / needs:.2f} of the "
            "forecast"
        )
