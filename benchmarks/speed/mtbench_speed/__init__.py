"""What a step of each method costs beside the plain sum, the floor, and other libraries.

Announced by an entry point in the group ``mtbench.benchmarks``; ``mtbench bench speed`` runs it.
"""

from mtbench_speed.command import command

__all__ = ["command"]
