"""The words in which a lesion is described: learnt as outputs of the guided embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mtbench_tasks._lesion.cases import Case


@dataclass(frozen=True)
class Descriptor:
    """One thing that is said of a lesion, such as its margin.

    Attributes:
        name: what it is.
        terms: what may be said.
        key: how a source calls it among `Case.descriptors`; a file of one's own may say `name`.
        words: a source's own words for a term; what is a term already needs none.
    """

    name: str
    terms: tuple[str, ...]
    key: str
    words: Mapping[str, str] = field(default_factory=dict)

    def word(self, said: Mapping[str, str]) -> str:
        """Return what a case's words say of it; nothing where it is not said."""
        return said.get(self.key, said.get(self.name, "")).partition(" - ")[0]  # the rest is detail

    def place(self, said: Mapping[str, str]) -> int:
        """Return which term a case's words mean; -1 where it has none that is known.

        >>> halo = Descriptor("halo", ("none", "present"), "echogenic_halo", {"no": "none"})
        >>> [halo.place({"echogenic_halo": word}) for word in ("no", "present", "?")]
        [0, 1, -1]
        """
        word = self.word(said)
        term = self.words.get(word, word)
        return self.terms.index(term) if term in self.terms else -1


Lexicon = tuple[Descriptor, ...]


class Threshold(NamedTuple):
    """From which size, in mm, a guideline asks for a biopsy and for follow-up; None: never.

    Where `above`, it asks for it above that size only. Where there is a `most`, the physician
    chooses the size of a biopsy, from `biopsy` to `most`.
    """

    system: str
    level: str
    biopsy: float | None
    follow_up: float | None
    source: str
    above: bool = False
    most: float | None = None


def labels(cases: Sequence[Case], lexicon: Lexicon) -> Tensor:
    """Return the cases' terms, (N, D), -1 where not known."""
    found = [[descriptor.place(case.descriptors) for descriptor in lexicon] for case in cases]
    return torch.tensor(found, dtype=torch.long).reshape(len(cases), len(lexicon))


def by_descriptor(logits: Tensor, lexicon: Lexicon) -> tuple[Tensor, ...]:
    """Return the logits (..., T) of all terms, parted by descriptor."""
    parts: tuple[Tensor, ...] = logits.split([len(d.terms) for d in lexicon], dim=-1)
    return parts


def loss(logits: Tensor, said: Tensor, lexicon: Lexicon) -> Tensor:
    r"""Return the mean over descriptors of the cross-entropy over the cases where it is known.

    :math:`\frac{1}{D} \sum_d \frac{1}{|K_d|} \sum_{i \in K_d} -\log p_{d}(y_{id} \mid x_i)`; a
    descriptor that nobody knows adds zero, on the graph.

    Args:
        logits: (B, T), of all terms of all descriptors, one after the other.
        said: (B, D), of `labels`.
        lexicon: D descriptors of T terms together.
    """
    losses = [
        F.cross_entropy(part, column, ignore_index=-1, reduction="sum")
        / (column >= 0).sum().clamp(min=1)
        for part, column in zip(by_descriptor(logits.float(), lexicon), said.unbind(1), strict=True)
    ]
    return torch.stack(losses).mean()


def read(logits: Tensor, lexicon: Lexicon) -> dict[str, dict[str, Any]]:
    """Return each descriptor's likeliest term and its probability.

    Args:
        logits: (T,).
        lexicon: the descriptors.
    """
    found = {}
    for descriptor, part in zip(lexicon, by_descriptor(logits.float(), lexicon), strict=True):
        chance, place = part.softmax(0).max(0)
        found[descriptor.name] = {
            "term": descriptor.terms[int(place)], "probability": round(float(chance), 4)
        }  # fmt: skip
    return found


def judge(logits: Tensor, said: Tensor, lexicon: Lexicon) -> dict[str, dict[str, Any]]:
    """Return for each descriptor in how many cases it is known, and right.

    Beside it stands in how many the most frequent term would be right.

    Args:
        logits: (N, T), as in `loss`.
        said: (N, D), of `labels`.
        lexicon: D descriptors of T terms together.
    """
    found = {}
    parts = by_descriptor(logits, lexicon)
    for descriptor, part, truth in zip(lexicon, parts, said.unbind(1), strict=True):
        here = truth >= 0
        found[descriptor.name] = {
            "known": int(here.sum()),
            "right": int((part.argmax(1) == truth)[here].sum()),
            "most_frequent": int(truth[here].bincount().max()) if here.any() else 0,
        }
    return found
