"""The public names hold by themselves."""

import subprocess
import sys

import mtbench.data
import mtbench.solvers
from mtbench.balancing import solvers
from mtbench.training import data


def test_modules_and_names_work_after_import_mtbench_alone() -> None:
    code = (
        "import mtbench, sys; assert 'torch' not in sys.modules;"
        "mtbench.data.TensorSplit, mtbench.solvers.min_norm, mtbench.testing.TaskContract;"
        "mtbench.seeding.derive;"
        "from mtbench import *; assert Task.__name__ == 'Task'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_they_are_what_they_stand_for() -> None:
    assert mtbench.solvers.__all__ == solvers.__all__
    for public, home in ((mtbench.solvers, solvers), (mtbench.data, data)):
        for name in public.__all__:
            assert getattr(public, name) is getattr(home, name)
    own = {
        name
        for name, value in vars(data).items()
        if getattr(value, "__module__", 0) == data.__name__
    }
    assert set(mtbench.data.__all__) == {name for name in own if not name.startswith("_")}
