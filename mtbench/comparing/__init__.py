"""Many cells: what is to be run, running it, choosing, and judging."""
