"""Suites that are shipped: `mtbench plan NAME`, `mtbench sweep NAME`."""
