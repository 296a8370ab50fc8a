"""What is to be run: suites, their grid of cells, and what it will take."""
