"""Results on their way from one folder of runs to another: export, import, merge."""

from mtbench.comparing.judging.exchange.folders import Moved, export, import_, merge

__all__ = ["Moved", "export", "import_", "merge"]
