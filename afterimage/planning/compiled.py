"""What the compiler says of a program: memory, FLOPs, bytes and collectives."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from afterimage.errors import UserError

_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)
_CALL = re.compile(
    rf"^\s*(?:ROOT )?%?\S+ = (?P<shape>.*?) (?P<name>{'|'.join(_COLLECTIVES)})"
    r"(?P<start>-start)?\("
)
_TO_HOST = re.compile(
    r" (?:infeed|outfeed)\(| (?:send|recv)\(.*is_host_transfer=true"
    r"|custom_call_target=\"[^\"]*callback",
    re.IGNORECASE,
)
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind in one step."""

    count: int
    bytes: int
    """Of their results, on each device."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program, on one device."""

    text: str
    """After optimisation (HLO)."""
    arguments: int
    """Bytes of everything that is passed in; donated arguments hold the results."""
    temporary: int
    """Bytes of activations and other values that do not outlive the program."""
    results: int
    """Bytes of results beside the donated arguments."""
    code: int
    """Bytes of the program itself, where the device holds it."""
    flops: float
    """Of one step: the loop over the steps of a dispatch counts once, and so does any
    other loop, such as a TPU's over parts of a large image that is turned."""
    bytes: float
    """Read and written by the operations of one step, as if none stayed on the chip."""
    collectives: Mapping[str, Collective]
    seconds: float
    """Time to compile it here."""

    @property
    def host_calls(self) -> int:
        """How many operations call the host: callbacks, feeds and transfers."""
        return sum(1 for line in self.text.splitlines() if _TO_HOST.search(line))

    @property
    def memory(self) -> int:
        """Bytes in use at the program's peak."""
        return self.arguments + self.temporary + self.results + self.code


class DoesNotFit(Exception):
    """The compiler found that the program needs more memory than a device has."""

    def __init__(self, needs: int | None):
        super().__init__(f"needs {needs} bytes")
        self.needs = needs
        """Bytes of a device it would need, if the compiler says so."""


def compile_lowered(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles a program and reads what the compiler says of it.

    Raises:
      DoesNotFit: as the compiler says, before there is a program.
      UserError: it cannot be compiled for another reason.
    """
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as error:  # jaxlib raises its own C++ error types here
        text = str(error)
        if "RESOURCE_EXHAUSTED" in text or "Ran out of memory" in text:
            raise DoesNotFit(needed(text)) from error
        raise UserError(
            f"The compiler refused this program: {text.strip().splitlines()[0][:500]}"
        ) from error
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    devices = len(jax.tree.leaves(compiled.input_shardings)[0].device_set)
    costs = _costs(compiled)
    return Compiled(
        text=text,
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=_flops(lowered) / devices,
        bytes=costs.get("bytes accessed", math.nan),
        collectives=collectives(text),
        seconds=seconds,
    )


def needed(message: str) -> int | None:
    """The bytes that XLA:TPU says a program needs: "Used 24.45G of 15.75G hbm"."""
    found = re.search(r"Used ([0-9.]+)([KMG]?) of [0-9.]+[KMG]? hbm", message)
    if found is None:
        return None
    return round(float(found[1]) * 2 ** {"": 0, "K": 10, "M": 20, "G": 30}[found[2]])


def _costs(compiled: jax.stages.Compiled) -> Mapping[str, float]:
    """XLA's own estimate for the optimised program, on one device."""
    own: Any = compiled.cost_analysis()
    if own:
        return own[0] if isinstance(own, list) else own
    # A GPU's compiler gives none without a GPU; the analysis itself needs no device.
    executable: Any = compiled.runtime_executable()
    return _analysis(executable.hlo_modules()[0])


def _flops(lowered: jax.stages.Lowered) -> float:
    """FLOPs of the program before optimisation, on all devices.

    Afterwards products may be calls of a library, whose FLOPs XLA does not know.
    """
    ir: Any = lowered.compiler_ir("hlo")
    return _analysis(ir.get_hlo_module()).get("flops", math.nan)


def _analysis(module: Any) -> Mapping[str, float]:
    from jax.extend.backend import get_backend
    from jaxlib import xla_client

    client: Any = get_backend("cpu")
    xla: Any = xla_client._xla  # pyright: ignore[reportPrivateImportUsage]
    return xla.hlo_module_cost_analysis(client, module)


def collectives(text: str) -> dict[str, Collective]:
    """{name: how many, and bytes} of the collectives in a compiled program's text."""
    found: dict[str, Collective] = {}
    for line in text.splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        sizes = [_size(*array) for array in _ARRAY.findall(match["shape"])]
        name = match["name"]
        # The others' starts give their operand beside their result.
        alone = match["start"] and name != "all-reduce"
        size = max(sizes, default=0) if alone else sum(sizes)
        before = found.get(name, Collective(0, 0))
        found[name] = Collective(before.count + 1, before.bytes + size)
    return found


def _size(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.findall(r"[0-9]+", dtype)[0])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8


def size_of(tree: Any) -> int:
    """Bytes on each device of arrays, or their shapes, with their shardings."""

    def size(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))
