"""Official benchmarks: ratios of smh to the same computation without it, measured by turns in one process.

`python -m benchmarks kernels|step|inference` measures and records, `python -m benchmarks report` writes the page
docs/performance.md from the results in benchmarks/results/.
"""
