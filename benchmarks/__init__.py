"""Official benchmarks: smh against the same computation without it, as ratios measured by turns in one process.

`python -m benchmarks kernels|step|inference` measures and records, `python -m benchmarks report` writes the page
docs/performance.md from what is recorded in benchmarks/results/.
"""
