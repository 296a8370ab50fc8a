"""PCD: follow the first objective, bent as little as the others' progress asks for."""

from math import inf, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mtbench.balancing.balancer import Weighting
from mtbench_baselines._checks import fraction, unit_interval

if TYPE_CHECKING:
    from optuna import Trial

_NOISE = 1e-12


class PCD(Weighting):
    r"""Stay as close to the primary gradient as the secondary objectives' least progress allows.

    The first objective is the primary one. With :math:`\tilde g_k = g_k / \sqrt{v_k}`, where v_k is
    the bias-corrected running average of :math:`\|g_k\|^2`:

    .. math:: \tilde d = \operatorname*{arg\,min}_d \tfrac12 \|d - \tilde g_1\|^2 \quad \text{s.t.}
        \quad \langle \tilde g_j, d \rangle \ge \tau \|\tilde g_j\|^2, \quad j = 2, \dots, K,
        \qquad d = \|g_1\| \frac{\tilde d}{\|\tilde d\|}

    By the KKT conditions :math:`\tilde d = \tilde g_1 + \sum_j \mu_j \tilde g_j` with
    :math:`\mu \ge 0`, and mu minimises a quadratic on the secondaries' Gramian, solved exactly.
    Where the constraints exclude each other they are dropped, and d = g_1; where
    :math:`\tilde d = 0`, d is 0.

    Deviations:
        - The paper adds epsilon = 1e-8 to v_k; ours is 0, and the scale of a loss never matters.
        - An objective without a gradient leaves its average alone, and is no constraint. If it is
          the primary one, the next with a gradient takes its place; the paper's update is 0 then.

    On a conflicting front the constraints still ask for the secondaries' progress: d goes to
    and fro across it, in steps as long as g_1, and drifts to the secondaries' end.

    Args:
        num_objectives: K.
        seed: unused.
        tau: share of its own normalised gradient's progress that a secondary is granted; in [0, 1].
        beta: memory of the averages; in [0, 1).

    Example:
        Gradients (1, 0) and (-1, 1), tau = 0: g_1 is projected to (1/2, 1/2), and has length 1
        again as (1, 1) / sqrt 2.

        >>> method = PCD(2, tau=0.0)
        >>> method.weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]).double(), torch.ones(2))
        tensor([1.4142, 0.7071], dtype=torch.float64)
    """

    paper = "Varam and AlHajri, TMLR 2026, arXiv 2606.29521, Definitions 4.1 and 4.5, Algorithm 1"
    checked_against = "torchjd 0.18 with eps = 0; KKT conditions; scipy NNLS"
    sees_zero_rows = True
    is_symmetric = False
    on_host = ("square", "count")

    square: Tensor
    count: Tensor

    def __init__(
        self, num_objectives: int, seed: int = 0, *, tau: float = 0.02, beta: float = 0.999
    ) -> None:
        super().__init__(num_objectives, seed)
        unit_interval(self, tau=tau)
        fraction(self, beta=beta)
        self.tau, self.beta = tau, beta
        zeros = torch.zeros(num_objectives, dtype=torch.float64, device="cpu")
        self.register_buffer("square", zeros)
        self.register_buffer("count", zeros.clone())

    @classmethod
    def suggest(cls, trial: "Trial", num_objectives: int) -> dict[str, Any]:
        """Draw tau log-uniformly from [0.001, 1]."""
        return {"tau": trial.suggest_float("tau", 1e-3, 1.0, log=True)}

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Return the weights of d."""
        G = gramian.numpy()
        live = G.diagonal() > 0
        weights = np.zeros(len(G))
        if not live.any():
            return torch.from_numpy(weights)
        G, norms = G[live][:, live], G.diagonal()[live]
        square, count = self.square.numpy(), self.count.numpy()  # in the same memory
        count[live] += 1
        square[live] = self.beta * square[live] + (1 - self.beta) * norms
        scale = 1 / np.sqrt(square[live] / (1 - self.beta ** count[live]))
        normed = G * scale[:, None] * scale
        found = bend(torch.from_numpy(normed), self.tau).numpy()
        length = found @ normed @ found
        parts = np.abs(found) @ np.sqrt(normed.diagonal())
        if length > _NOISE * parts**2:
            weights[live] = found * scale * sqrt(norms[0] / length)
        return torch.from_numpy(weights)


def bend(gramian: Tensor, tau: float) -> Tensor:
    r"""Return the weights (1, mu) of the vector closest to g_1 with enough progress for all others.

    By the dual method of Goldfarb and Idnani (Math. Programming 27, 1983): the most violated
    constraint's multiplier is raised, those that hold with equality being kept so, until it holds
    too, or until another one's multiplier reaches 0 and leaves. Where neither happens, the
    constraints exclude each other.

    Args:
        gramian: (K, K), float64, with a positive diagonal.
        tau: at least 0.
    """
    G = gramian.numpy()
    norms = np.sqrt(G.diagonal()[1:])
    cosines = G[1:, 1:] / norms[:, None] / norms
    wanted = tau * norms - G[1:, 0] / norms  # beyond what g_1 gives, along g_j / ||g_j||
    noise = _NOISE * (sqrt(G[0, 0]) + norms.max(initial=0))
    mu = np.zeros_like(norms)  # times ||g_j||
    tight: list[int] = []
    entering: int | None = None
    for _ in range(10 * len(norms)):
        missing = wanted - cosines @ mu
        if entering is None:
            missing[tight] = 0
            entering = int(missing.argmax())
            if missing[entering] <= noise:
                break
        # g_entering = the tight ones times `shares`, plus a rest orthogonal to them.
        shares = np.linalg.solve(cosines[tight][:, tight], cosines[tight, entering])
        rest = 1 - cosines[entering, tight] @ shares
        room = [m / share if share > 0 else inf for m, share in zip(mu[tight], shares, strict=True)]
        nearest = min(room, default=inf)
        step = missing[entering] / rest if rest > _NOISE else inf
        if min(step, nearest) == inf:
            mu[:] = 0
            break
        mu[tight] -= min(step, nearest) * shares
        mu[entering] += min(step, nearest)
        if step <= nearest:
            tight.append(entering)
            entering = None
        else:
            mu[tight.pop(room.index(nearest))] = 0
    return torch.from_numpy(np.concatenate([[1.0], np.maximum(mu, 0) / norms]))
