"""The training loop: state, step, groups, optimiser, mesh, metrics, stop signals."""
