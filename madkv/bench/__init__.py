"""Tools that measure a running store: YCSB workloads, the runner, reports and plots."""
