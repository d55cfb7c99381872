"""Limits of this process under which its libraries end in a crash, not in an error."""

from afterimage.errors import UserError

_LEAST = 2_400_000_000
"""Bytes of address space: with 2.0e9 XLA aborts, with 2.5e9 a small run works."""


def check_address_space() -> None:
    """Raise UserError where `ulimit -v` leaves too little to start JAX."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST:
        raise UserError(
            f"The memory of this process is limited to {limit / 1e9:.1f} GB of address "
            f"space (ulimit -v). JAX needs at least {_LEAST / 1e9:.1f} GB to start: "
            "raise the limit"
        )
