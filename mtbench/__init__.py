"""mtbench: a pluggable benchmark toolkit for multitask optimization."""

__version__ = "0.1.0"
