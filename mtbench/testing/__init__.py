"""The conformance suites of methods and of tasks, to be run by anybody's pytest.

Subclass one and override its fixture; the class's name begins with ``Test`` so that pytest
collects it::

    class TestMine(BalancerContract):
        @pytest.fixture
        def make(self):
            return Mine


    class TestTheirs(TaskContract):
        @pytest.fixture
        def make(self):
            return Theirs
"""

from mtbench.testing.balancers import BalancerContract
from mtbench.testing.problem import Make
from mtbench.testing.tasks import MakeTask, TaskContract, Unlabelled

__all__ = ["BalancerContract", "Make", "MakeTask", "TaskContract", "Unlabelled"]
