"""QM9: eleven properties of small molecules from their atoms, bonds and distances."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench import seeding
from mtbench.balancing.model import MultitaskModel
from mtbench.errors import DataError
from mtbench.training.data import TensorSplit
from mtbench.training.task import Batch, Meter, Metric, Progress, Recipe, Split, Splits, Task
from mtbench_tasks._bounds import at_least
from mtbench_tasks._molecules import ELEMENTS, TARGETS, Molecules, load
from mtbench_tasks._sources import only
from mtbench_tasks._tabular import unit_scale

BOND_TYPES = 4
EDGE_WIDTH = 128  # hidden units of the network that makes a message matrix of an edge

ATOMS = 29
"""Of QM9's largest molecules: the side of a Coulomb matrix."""

INPUTS = ATOMS * (ATOMS + 1) // 2 + len(ELEMENTS)

BOHR = 0.529177  # angstrom

RECIPES = {
    "coulomb": Recipe(epochs=10, batch_size=256, lr=2e-3, weight_decay=0.0, select="last"),
    "mpnn": Recipe(epochs=300, batch_size=120, lr=1e-3, weight_decay=0.0, select="last"),
}

WIDTHS = {"coulomb": 256, "mpnn": 64}

MOLECULES = {"coulomb": 20_000, "mpnn": None}


class Molecular(Split):
    """Some molecules, as padded graphs of one tensor.

    Args:
        molecules: all there are.
        chosen: which of them, (N,).
        mean: of the training targets, (11,).
        scale: their standard deviation, (11,).
    """

    def __init__(self, molecules: Molecules, chosen: Tensor, mean: Tensor, scale: Tensor) -> None:
        self.chosen, self.scale = chosen, scale
        self.numbers = torch.from_numpy(molecules.numbers)
        self.positions = torch.from_numpy(molecules.positions)
        self.bonds = torch.from_numpy(molecules.bonds)
        self.atom_starts = torch.from_numpy(molecules.atom_starts)
        self.bond_starts = torch.from_numpy(molecules.bond_starts)
        self.targets = ((torch.from_numpy(molecules.targets) - mean) / scale).float()

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return ``inputs``, (B, N, 4 + N), and ``targets``, standardised, (B, 11).

        An atom's row is its atomic number (0 where there is no atom), its position, and the types
        of its bonds to every atom (0 where there is none). ``scale`` turns an error of a
        standardised target into its unit.
        """
        rows = self.chosen[indices]
        b, atom, at = _ragged(self.atom_starts, rows)
        width = int(at.max()) + 1
        inputs = torch.zeros(len(rows), width, 4 + width)
        inputs[b, at, 0] = self.numbers[atom].float()
        inputs[b, at, 1:4] = self.positions[atom]
        b, bond, _ = _ragged(self.bond_starts, rows)
        first, second, kind = self.bonds[bond].long().unbind(1)
        inputs[b, first, 4 + second] = inputs[b, second, 4 + first] = kind.float()
        return {"inputs": inputs, "targets": self.targets[rows], "scale": self.scale.float()}


def _ragged(starts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (position in `rows`, element, position in its row) of every element of some rows."""
    counts = starts[rows + 1] - starts[rows]
    of = torch.repeat_interleave(torch.arange(len(rows)), counts)
    within = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of]
    return of, starts[rows][of] + within, within


def coulomb(inputs: Tensor) -> Tensor:
    r"""Return sorted Coulomb matrices and how often each element occurs, (B, `INPUTS`).

    .. math:: C_{ii} = \tfrac{1}{2} Z_i^{2.4}, \quad C_{ij} = \frac{Z_i Z_j}{|R_i - R_j|}

    in atomic units, rows and columns in the order of falling row norms, of which the upper triangle
    is kept (Rupp et al., PRL 108, 2012, arXiv 1109.2618). The counts are ours.

    Args:
        inputs: (B, N, 4 + N), as `Molecular` makes them; N at most `ATOMS`.
    """
    numbers, positions = inputs[..., 0], inputs[..., 1:4] / BOHR
    charges = numbers[:, :, None] * numbers[:, None]
    distances = (positions[:, :, None] - positions[:, None]).norm(dim=-1)
    itself = torch.eye(inputs.shape[1], dtype=torch.bool)
    matrix = torch.where(charges > 0, charges / distances, 0)
    matrix = torch.where(itself, numbers[:, None].pow(2.4) / 2, matrix)
    order = matrix.norm(dim=2).argsort(dim=1, descending=True, stable=True)
    rows = torch.arange(len(inputs))[:, None, None]
    matrix = matrix[rows, order[:, :, None], order[:, None]]
    side = ATOMS - inputs.shape[1]
    first, second = torch.triu_indices(ATOMS, ATOMS)
    counts = [(numbers == number).sum(1, keepdim=True) for number in ELEMENTS.values()]
    return torch.cat([F.pad(matrix, (0, side, 0, side))[:, first, second], *counts], 1)


def described(split: Molecular) -> tuple[Tensor, Tensor]:
    """Return what `coulomb` makes of a split's molecules, (N, `INPUTS`), and their targets."""
    batches = [split.batch(rows) for rows in torch.arange(len(split)).split(1_000)]
    inputs = torch.cat([coulomb(batch["inputs"]) for batch in batches])
    return inputs, torch.cat([batch["targets"] for batch in batches])


class EdgeConvolution(nn.Module):
    r"""Messages through a matrix that a network makes of each edge (Gilmer et al. 2017, eq. 4).

    .. math:: m_i = \frac{1}{|N(i)|} \sum_{j \in N(i)} A(e_{ij})^\top h_j + R h_i + b, \quad
        A(e) = W_2 \, \mathrm{relu}(W_1 e + b_1) + b_2

    A is linear in the hidden units r(e), so the sum over j of r(e_ij) x h_j is taken first and
    multiplied by W_2 once an atom instead of once an edge: at 18 atoms a seventeenth of the work.
    torch-geometric's ``NNConv`` gives the same numbers.

    Args:
        edge: number of edge features.
        width: of h and m.
    """

    def __init__(self, edge: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.hidden = nn.Linear(edge, EDGE_WIDTH)
        self.matrix = nn.Linear(EDGE_WIDTH, width * width)
        self.root = nn.Linear(width, width)

    def forward(self, h: Tensor, units: Tensor, neighbours: Tensor) -> Tensor:
        """Return the messages, (B, N, C).

        Args:
            h: (B, N, C).
            units: r(e), (B, N, N, U), from `edges`.
            neighbours: 1 / |N(i)| where j is a neighbour of i, else 0, (B, N, N).
        """
        shape = EDGE_WIDTH, self.width, self.width
        weight = self.matrix.weight.T.reshape(shape)
        gathered = torch.einsum("bijk,bjc->bikc", units * neighbours[..., None], h)
        constant = neighbours @ h @ self.matrix.bias.view(shape[1:])
        messages: Tensor = torch.einsum("bikc,kcd->bid", gathered, weight) + constant + self.root(h)
        return messages

    def edges(self, features: Tensor) -> Tensor:
        """Return the hidden units r(e) of edge features."""
        return F.relu(self.hidden(features))


class Set2Set(nn.Module):
    """Read a set by attention, several times over (Vinyals et al. 2016), (B, N, C) to (B, 2 C)."""

    def __init__(self, width: int, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.lstm = nn.LSTMCell(2 * width, width)

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """Return [query, what it read]; elements that are not `present`, (B, N), are not read."""
        read = h.new_zeros(len(h), 2 * h.shape[-1])
        state = h.new_zeros(len(h), h.shape[-1]), h.new_zeros(len(h), h.shape[-1])
        for _ in range(self.steps):
            state = self.lstm(read, state)
            scores = torch.einsum("bnc,bc->bn", h, state[0]).masked_fill(~present, -torch.inf)
            read = torch.cat([state[0], torch.einsum("bn,bnc->bc", scores.softmax(1), h)], 1)
        return read


class Encoder(nn.Module):
    """The message-passing network: three rounds on the complete graph, read by Set2Set to z.

    Args:
        width: C, of the atoms' states and of z.
    """

    elements: Tensor
    types: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(len(ELEMENTS) + 2, width)
        self.message = EdgeConvolution(BOND_TYPES + 1, width)
        self.update = nn.GRUCell(width, width)
        self.read = Set2Set(width)
        self.out = nn.Linear(2 * width, width)
        self.register_buffer("elements", torch.tensor([*ELEMENTS.values()]), persistent=False)
        self.register_buffer("types", torch.arange(1, BOND_TYPES + 1), persistent=False)

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        """Return z, (B, C)."""
        numbers, positions, bonds = inputs[..., 0], inputs[..., 1:4], inputs[..., 4:]
        present = numbers > 0
        hydrogens = ((bonds > 0) & (numbers == 1)[:, None]).sum(-1)
        kinds = numbers[..., None] == self.elements
        atoms = torch.cat([kinds, numbers[..., None], hydrogens[..., None]], -1)
        distances = (positions[:, :, None] - positions[:, None]).norm(dim=-1, keepdim=True)
        units = self.message.edges(torch.cat([bonds[..., None] == self.types, distances], -1))
        pairs = (present[:, :, None] & present[:, None]).float()
        pairs = pairs * (1 - torch.eye(pairs.shape[-1], device=pairs.device))
        neighbours = pairs / pairs.sum(-1, keepdim=True).clamp(min=1)
        h = F.relu(self.embed(atoms))
        for _ in range(3):
            m = F.relu(self.message(h, units, neighbours))
            h = self.update(m.flatten(0, 1), h.flatten(0, 1)).view(m.shape)
        return (F.relu(self.out(self.read(h, present))),)


class Perceptron(nn.Sequential):
    """Three layers to z.

    Args:
        width: of each.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(INPUTS, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
        )  # fmt: skip

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        """Return z, (B, C)."""
        return (super().forward(inputs),)


class Head(nn.Linear):
    """One standardised property of z."""

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:  # type: ignore[override]
        """Return (B,)."""
        return super().forward(features[0])[:, 0]


class Errors(Meter):
    """Mean absolute errors in the targets' units."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(len(TARGETS), dtype=torch.float64), 0

    def update(self, outputs: Sequence[Any], batch: Batch) -> None:
        """Take in one batch."""
        errors = (torch.stack([*outputs], 1).float() - batch["targets"]).abs() * batch["scale"]
        self.total += errors.double().sum(0).cpu()
        self.count += len(errors)

    def compute(self) -> dict[str, float]:
        """Return ``mae_TARGET`` of every target."""
        means = (self.total / self.count if self.count else self.total * torch.nan).tolist()
        return {f"mae_{name}": mean for name, mean in zip(TARGETS, means, strict=True)}


class QM9(Task):
    """Eleven quantum-chemical properties of molecules of up to nine heavy atoms.

    The benchmark of Nash-MTL (Navon et al. 2022, arXiv 2202.01017) and of what followed it: dipole
    moment mu (D), polarisability alpha (a0^3), energies of HOMO, LUMO, zero-point vibration and
    atomisation at 0 K (u0) and 298 K (u, h, g) (meV), electronic spatial extent r2 (a0^2), heat
    capacity cv (cal/mol K). Each objective is the squared error of the standardised target, each
    metric its mean absolute error; all eleven enter delta-m. Without `data` the molecules are those
    of the package ``qm9pack``, by an author of the data set; its bonds are read from SMILES, and
    eight molecules whose SMILES does not fit their atoms are left out.

    ``coulomb`` is for anybody: a perceptron on sorted Coulomb matrices, trained on 20,000 molecules
    in seconds. ``mpnn`` is the network of the papers, Gilmer et al.'s (2017) as torch-geometric's
    example has it, on all molecules: complete graph, bond types and distances on the edges, three
    rounds of edge-conditioned messages and GRU, Set2Set. Both have one linear head per property.

    The validation and the test molecules are the same at every seed, which draws the training ones.

    Deviations of ``mpnn``:
        - The papers draw the test molecules by the seed.
        - The papers' learning rate falls by 0.7 when validation delta-m has not improved for 5
          epochs; here it follows a cosine to zero, and the last epoch is tested instead of the one
          with the best validation delta-m against published single-task numbers.
        - Atoms lack four features that torch-geometric fills with zeros when it reads the same
          files (aromatic, sp, sp2, sp3).

    Args:
        data: the folder of the raw files; `mtbench_tasks._molecules.load` says which.
        network: ``coulomb`` or ``mpnn``.
        molecules: of the training split; by default 20,000 for ``coulomb``, and all that there are
            for ``mpnn``.
        held_out: molecules of the validation split, and of the test split.
        width: of the perceptron's layers (256 by default), or of the atoms' states (64); and of z.
        strict: stop at a molecule that cannot be read instead of dropping it.
    """

    objectives = tuple(TARGETS)
    metrics = {  # noqa: RUF012
        f"mae_{name}": Metric(name, higher_is_better=False, primary=True) for name in TARGETS
    }

    def __init__(
        self,
        *,
        data: Path | None = None,
        network: Literal["coulomb", "mpnn"] = "coulomb",
        molecules: int | None = None,
        held_out: int = 10_000,
        width: int | None = None,
        strict: bool = False,
    ) -> None:
        self.data, self.network, self.held_out, self.strict = data, network, held_out, strict
        self.molecules = MOLECULES[network] if molecules is None else molecules
        self.width = WIDTHS[network] if width is None else width
        at_least(1, held_out=held_out, width=self.width)
        at_least(2, molecules=self.molecules)
        self.dependent = {"molecules": self.molecules, "width": self.width}
        self.recipe = RECIPES[network]

    def setup(self, seed: int, progress: Progress) -> Splits:
        """Read the molecules, hold out the same at every seed, and draw the training split."""
        molecules = load(self.data, self.strict, progress)
        count = len(molecules)
        if count < 2 * self.held_out + 2:
            raise DataError(
                f"{self.data}: {count} molecules are too few for {self.held_out} in validation, "
                f"{self.held_out} in test and 2 in training; set a smaller held_out"
            )
        order = torch.randperm(count, generator=seeding.generator(0, "split"))
        test, val, rest = order.split([self.held_out, self.held_out, count - 2 * self.held_out])
        drawn = torch.randperm(len(rest), generator=seeding.generator(seed, "training"))
        train = rest[drawn[: self.molecules]]
        targets = torch.from_numpy(molecules.targets)[train]
        mean, scale = targets.mean(0), targets.std(0)
        scale = torch.where(scale > 0, scale, 1.0)
        parts = [Molecular(molecules, rows, mean, scale) for rows in (train, val, test)]
        notes = {
            "molecules": [len(part) for part in parts],
            "excluded": molecules.excluded,
            "broken": len(molecules.broken),
        }
        train_split, val_split, test_split = (
            self._matrices(parts) if self.network == "coulomb" else parts
        )
        return Splits(
            train_split, val_split, test_split, fingerprint=molecules.fingerprint, notes=notes
        )

    def _matrices(self, parts: Sequence[Molecular]) -> list[Split]:
        largest = int(parts[0].atom_starts.diff().max())
        if largest > ATOMS:
            raise DataError(
                f"{self.data}: network coulomb takes molecules of up to {ATOMS} atoms, as QM9's "
                f"are, found one of {largest}; leave it out, or set network=mpnn"
            )
        made = [described(part) for part in parts]
        mean, scale = map(torch.from_numpy, unit_scale(made[0][0].double().numpy()))
        return [
            TensorSplit(
                ((inputs - mean) / scale).float(),
                targets=targets,
                scale=parts[0].scale.float().expand(len(inputs), -1),
            )
            for inputs, targets in made
        ]

    def model(self) -> MultitaskModel:
        """Return the network."""
        heads = [Head(self.width, 1) for _ in TARGETS]
        encoder = Perceptron if self.network == "coulomb" else Encoder
        return MultitaskModel(encoder(self.width), heads)

    def losses(self, outputs: Sequence[Any], batch: Batch) -> list[Tensor]:
        """Return the mean squared errors of the standardised targets."""
        return [
            F.mse_loss(output.float(), batch["targets"][:, k]) for k, output in enumerate(outputs)
        ]

    def meter(self) -> Meter:
        """Return a fresh meter."""
        return Errors()

    @classmethod
    def inspect(cls, source: str, data: Path | None) -> list[tuple[str, str, str]]:
        """Return how many molecules are used and dropped."""
        only(source, "qm9")
        molecules = load(data, False, lambda *_: None)
        atoms = molecules.atom_starts[1:] - molecules.atom_starts[:-1]
        return [
            (str(len(molecules)), "molecules used", f"{atoms.min()} to {atoms.max()} atoms"),
            (str(molecules.excluded), "molecules excluded", "listed in uncharacterized.txt"),
            (str(len(molecules.broken)), "molecules dropped", "; ".join(molecules.broken[:5])),
        ]
