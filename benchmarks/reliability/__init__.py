"""The same faults in four training jobs of equal size: ours and three peers'.

`python -m benchmarks.reliability --peers-python PYTHON` runs them and records what
happened; `--only afterimage` runs ours again and keeps the recorded peers.
"""
