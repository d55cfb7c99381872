"""The same faults against four training jobs of one size: ours and three peers'.

`python -m benchmarks.reliability --peers-python PYTHON` runs them and records what
happened; `--only afterimage` runs ours anew beside the recorded peers.
"""
