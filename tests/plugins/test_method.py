"""Methods by name: composition, parameters, construction; `combine`."""

import pytest
import torch

from mtbench import Method, UsageError, combine
from mtbench.errors import PluginError
from mtbench.training.cell.request import Request

WRAPPERS = {
    "double": '''
"""Twice the weights."""
from mtbench import WeightingWrapper

class Double(WeightingWrapper):
    paper = "none"
    def __init__(self, base, seed=0, *, factor: float = 2.0):
        super().__init__(base, seed)
        self.factor = factor
    def weights(self, gramian, losses):
        return self.factor * self.base.weigh(gramian, losses)
''',
    "plain": '''
"""The base, as it is."""
from mtbench import Wrapper

class Plain(Wrapper):
    paper, passes = "none", "one look"
    def balance(self, step):
        return self.base.balance(step)
''',
}
BARE = """
from mtbench import Balancer

class Bare(Balancer):
    def balance(self, step):
        step.backward(step.ones)
"""
ORTHOGONAL = torch.diag(torch.tensor([2.0, 1.0]))


@pytest.fixture
def plugins(tmp_path):
    files = []
    for name, text in WRAPPERS.items():
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text(text)
    return files


def test_a_plain_name_is_its_class(plugins):
    method = Method.find("cagrad")
    assert method.resolve({"c": "0.3"}) == {"c": 0.3}
    assert method(3, c=0.3).c == 0.3
    assert method.passes == "F + H + K E"
    assert not method.reference
    assert Method.find("stl").reference


def test_a_method_that_says_nothing_of_itself_is_one(tmp_path):
    (file := tmp_path / "bare.py").write_text(BARE)
    method = Method.find("bare", [file])
    assert (method.passes, method(2).paper) == ("", "")


def test_wrappers_around_a_base(plugins):
    method = Method.find("double+plain+stl", plugins)
    assert not method.reference
    method = Method.find("double+mgda", plugins)
    assert method.resolve({"double.factor": "3"}) == {
        "double.factor": 3.0, "mgda.normalise": "none", "mgda.space": "shared",
    }  # fmt: skip
    assert method.passes == Method.find("mgda").passes
    assert Method.find("plain+double+pcgrad", plugins).passes == "one look, around F + H + K E"
    assert set(method.digests) == {"double", "mgda"}
    balancer = method(2, **{"double.factor": 3, "mgda.normalise": "l2"})
    gramian = ORTHOGONAL.double() @ ORTHOGONAL.double().T
    assert balancer.weights(gramian, torch.ones(2)).tolist() == pytest.approx([1.5, 1.5])
    # a base leaves out objectives without a gradient, inside a wrapper too
    gramian[0, 0] = 0
    assert balancer.weigh(gramian, torch.ones(2).double()).tolist() == [0.0, 3.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("double", r"double wraps another method: name it, as in double\+METHOD"),
        ("mgda+double", "mgda wraps no other method"),
        ("mgda+ew", "mgda wraps no other method"),
        ("double+double+mgda", "names a part twice"),
        ("double+magd", "unknown method 'magd': did you mean 'mgda'"),
        ("double+", "a method is missing beside +"),
        ("+mgda", "a wrapper is missing beside +"),
    ],
)
def test_compositions_that_make_no_sense(plugins, name, words):
    with pytest.raises(UsageError, match=words):
        Method.find(name, plugins)


def test_a_method_and_a_task_of_one_name_are_no_cell(plugins, tiny):
    file = plugins[0]
    file.write_text(file.read_text() + tiny.read_text())
    with pytest.raises(UsageError, match="a method are both called 'double': rename"):
        Request.of("double", ["ew", "double+mgda"], {}, [file])


def test_a_metric_that_no_board_can_show_is_told_before_training(tiny, tmp_path):
    plugin = tmp_path / "ranked.py"
    plugin.write_text(tiny.read_text().replace('"within"', '"rank"'))
    with pytest.raises(UsageError, match="ranked: its metric 'rank' is called like a column"):
        Request.of("ranked", ["ew"], {}, [plugin])


def test_a_base_of_another_family(plugins):
    with pytest.raises(
        UsageError,
        match=r"^double wraps methods that find weights from the Gramian .*, found ew$",
    ):
        Method.find("double+ew", plugins)(2)


def test_parameters_that_do_not_exist(plugins):
    method = Method.find("double+mgda", plugins)
    with pytest.raises(UsageError, match=r"has no parameter 'factor': say double\.factor$"):
        method.resolve({"factor": 3})
    with pytest.raises(UsageError, match=r"has no parameter 'other': say PART\.PARAMETER$"):
        method.resolve({"other": 3})
    with pytest.raises(UsageError, match="double has no parameter 'facto': did you mean"):
        method.resolve({"double.facto": 3})


def test_every_part_draws_its_own():
    import optuna

    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    method = Method.find("damped+mgda")
    drawn = method.suggest(trial, 2)
    assert set(drawn) == {"damped.damping", "mgda.normalise"} == set(trial.params)
    assert method.resolve(drawn)["damped.damping"] == drawn["damped.damping"]
    assert set(Method.find("mgda").suggest(trial, 2)) == {"normalise"}


def test_a_search_space_is_a_mapping(plugins):
    file = plugins[0]
    file.write_text(file.read_text() + "    @classmethod\n    def suggest(cls, trial, K): ...\n")
    with pytest.raises(PluginError, match=r"double\.py: suggest must return .*, found None"):
        Method.find("double+mgda", plugins).suggest(None, 2)


def test_the_command_line_names_parts(plugins, tiny):
    request = Request.of(
        "tiny", ["double+mgda", "mgda"], {"normalise": "l2", "factor": "4"}, [tiny, *plugins]
    )
    assert [choice.params["mgda.normalise" if i == 0 else "normalise"]
            for i, choice in enumerate(request.choices)] == ["l2", "l2"]  # fmt: skip
    assert request.choices[0].params["double.factor"] == 4.0
    splits = request.task.setup(0, lambda *_: None)
    spec = request.spec(request.choices[0], splits.fingerprint, 0, "fp32", "cpu")
    assert spec.method == "double+mgda"
    assert set(spec.plugins) == {"double", "mgda", "tiny"}


CONSTRUCTOR = """
from mtbench import Wrapper, Weighting

class Mine({base}):
    paper = "none"
    def __init__({takes}):
        {does}
    def {asked}: ...
"""


@pytest.mark.parametrize(
    ("takes", "does", "said"),
    [
        ("self, num_objectives", "super().__init__(num_objectives)", "unexpected .* 'seed'"),
        ("self", "super().__init__(2)", "too many positional arguments"),
        ("self, num_objectives, alpha, seed=0", "pass", "missing a required argument: 'alpha'"),
        ("self, num_objectives, seed=0", "self.alpha = 1", "does not construct its base: begin"),
        (
            "self, num_objectives, seed=0",
            "super().__init__(num_objectives); self.generator = 2",
            "overwrites self.generator, which is its base's",
        ),
    ],
    ids=["seed", "nothing", "another", "base", "generator"],
)
def test_a_constructor_that_is_not_as_all_are(tmp_path, takes, does, said):
    (file := tmp_path / "mine.py").write_text(
        CONSTRUCTOR.format(
            base="Weighting", takes=takes, does=does, asked="weights(self, gramian, losses)"
        )
    )
    with pytest.raises(PluginError, match=rf"mine\.py: Mine\.__init__ .*{said}"):
        Method.find("mine", [file])(2)


def test_a_wrapper_takes_its_base(tmp_path):
    (file := tmp_path / "mine.py").write_text(
        CONSTRUCTOR.format(base="Wrapper", takes="self", does="pass", asked="balance(self, step)")
    )
    with pytest.raises(PluginError, match=r"must take \(self, base, seed=0\)"):
        Method.find("mine+ew", [file])(2)


def test_combine():
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert combine("ew", rows).tolist() == [2.0, 1.0]
    torch.testing.assert_close(combine("mgda", rows), torch.tensor([0.4, 0.8]))
    torch.testing.assert_close(
        combine("mgda", rows, torch.tensor([2.0, 1.0]), normalise="loss"),
        torch.tensor([1.0, 0.5]),
    )
    assert combine("cagrad", rows.double(), c=0.0).dtype == torch.float64
    conflict = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(combine("pcgrad", conflict), torch.tensor([0.5, 1.5]))
    assert not combine("mgda", torch.zeros(3, 4)).any()


@pytest.mark.parametrize(
    ("jacobian", "losses", "words"),
    [
        (torch.ones(3), None, r"jacobian must be \(K, d\), .* found \(3,\) of torch.float32"),
        ([[1.0, 0.0]], None, "found a list"),
        (torch.ones(2, 3, dtype=torch.int64), None, r"found \(2, 3\) of torch.int64"),
        (torch.ones(0, 3), None, r"found \(0, 3\)"),
        (torch.ones(2, 3), torch.ones(3), r"losses must be \(2,\), found \(3,\)"),
    ],
)
def test_combine_refuses(jacobian, losses, words):
    with pytest.raises(UsageError, match=words):
        combine("ew", jacobian, losses)
