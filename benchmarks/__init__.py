"""Benchmarks: ratios against peers and a C reference in one run. Not part of the tests.

``python -m benchmarks`` runs them. One module a workload (roundtrip, flood, ...): each says which
cases it has and how one contestant is measured once. `measuring` takes the turns and does the
statistics, `slices` is what a short turn of round trips is, `processes` starts what is measured,
`worker` is what runs in there, `peers` knows the libraries, `report` prints and writes. What each
workload measures is in docs/performance.md.
"""
