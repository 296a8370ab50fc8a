"""``python -m mtbench``, which ``torchrun -m mtbench`` needs."""

from mtbench.cli import main

main()
