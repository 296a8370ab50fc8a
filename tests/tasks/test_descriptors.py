"""Descriptors, points and guidelines: a slow twin, the phantom's sums, and each threshold."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mtbench.errors import UsageError
from mtbench.training.task import Trained
from mtbench_tasks import breast
from mtbench_tasks._lesion import descriptors
from mtbench_tasks._lesion.descriptors import Descriptor
from mtbench_tasks._lesion.network import Described
from mtbench_tasks.breast import Breast
from mtbench_tasks.thyroid import Thyroid, acr, ddti, ultrasound
from tests.conftest import Mtbench

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL: dict[str, Any] = {"cases": 24, "test_cases": 12, "image_size": 32, "width": 2}
LEXICON = (
    Descriptor("margin", ("smooth", "irregular"), "margin"),
    Descriptor("foci", ("none", "rim", "punctate"), "calcifications", {"micro": "punctate"}),
)


def test_the_loss_is_the_mean_over_what_is_known() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    said = torch.tensor([[0, 2], [1, -1], [-1, -1], [1, 0]])
    wanted = [
        sum(-logits[i, :2].log_softmax(0)[said[i, 0]].item() for i in (0, 1, 3)) / 3,
        sum(-logits[i, 2:].log_softmax(0)[said[i, 1]].item() for i in (0, 3)) / 2,
    ]
    found = descriptors.loss(logits, said, LEXICON)
    assert found.item() == pytest.approx(sum(wanted) / 2)
    found.backward()
    assert logits.grad is not None
    assert (logits.grad[2] == 0).all()
    nobody = descriptors.loss(logits, torch.full((4, 2), -1), LEXICON)
    assert nobody.item() == 0
    assert nobody.requires_grad


def test_the_likeliest_terms_are_read() -> None:
    logits = torch.tensor([0.0, 1.0, 5.0, 0.0, 0.0])
    found = descriptors.read(logits, LEXICON)
    assert found["margin"] == {
        "term": "irregular",
        "probability": pytest.approx(float(F.sigmoid(torch.tensor(1.0))), abs=1e-4),
    }
    assert found["foci"]["term"] == "none"


def test_points_are_the_phantoms() -> None:
    names = [descriptor.name for descriptor in acr.LEXICON]
    for words in itertools.product(*(descriptor.terms for descriptor in acr.LEXICON)):
        terms = dict(zip(names, words, strict=True))
        total = ultrasound.points(ultrasound.Descriptors(*words))
        assert acr.points(terms, None) == (total, total)
        # Without the shape, what was measured counts; without either, both are possible.
        upright = terms.pop("shape") == "taller-than-wide"
        assert acr.points(terms, upright) == (total, total)
        low, high = acr.points(terms, None) or (0, 0)
        assert low <= total <= high
    assert acr.points({"composition": "solid"}, True) is None


@pytest.mark.parametrize(
    ("level", "size", "says"),
    [
        ("TR1", 60, "no biopsy"), ("TR2", 60, "no biopsy"),
        ("TR3", 14.9, "neither"), ("TR3", 15, "follow-up"), ("TR3", 24.9, "follow-up"),
        ("TR3", 25, "biopsy"), ("TR4", 9.9, "neither"), ("TR4", 10, "follow-up"),
        ("TR4", 15, "biopsy"), ("TR5", 4.9, "neither"), ("TR5", 5, "follow-up"),
        ("TR5", 10, "biopsy"),
    ],
)  # fmt: skip
def test_acr_by_level_and_size(level: str, size: float, says: str) -> None:
    found = acr.advice(level, size)
    assert found.startswith(says) or found.endswith(f": {says}")


def view(**more: Any) -> dict[str, Any]:
    return {
        "category": "TR4", "probabilities": {"TR4": 0.6, "TR5": 0.4}, "taller_than_wide": None,
        "long_axis_mm": 12.0, "descriptors": None, **more,
    }  # fmt: skip


def test_an_assessment_has_points_beside_the_category() -> None:
    terms = {
        "composition": "solid", "echogenicity": "hypoechoic", "margin": "irregular",
        "echogenic foci": "none",
    }  # fmt: skip
    said = {name: {"term": term, "probability": 0.5} for name, term in terms.items()}
    found = acr.assess(view(descriptors=said))
    assert found is not None
    assert (found["points"], found["levels"]) == ((6, 9), ["TR4", "TR5"])
    assert found["says"] == [
        "by points TR4: biopsy from 15 mm, follow-up from 10 mm; at 12 mm: follow-up",
        "by points TR5: biopsy from 10 mm, follow-up from 5 mm; at 12 mm: biopsy",
        "category TR4: biopsy from 15 mm, follow-up from 10 mm; at 12 mm: follow-up",
    ]
    flat = acr.assess(view(descriptors=said, taller_than_wide=False))
    assert flat is not None
    assert flat["levels"] == ["TR4"]
    said["margin"]["probability"] = 0.4
    unsure = acr.assess(view(descriptors=said))
    assert unsure is not None
    assert unsure["points"] is None
    assert unsure["says"] == ["no points: margin unclear", *found["says"][2:]]
    # DDTI's 4a is no level of ACR's; an unclear category is none either.
    assert acr.assess(view(category="4a", probabilities={"4a": 0.9})) is None
    assert acr.assess(view(probabilities={"TR4": 0.4})) is None


def test_it_is_an_option_that_changes_nothing_else() -> None:
    """Without it the batch, the model and the losses are as they were; with it, the rest is."""
    plain, asked = Thyroid(**SMALL), Thyroid(**SMALL, descriptors=0.5)
    models, batches = [], []
    for task in (plain, asked):
        splits = task.setup(0, lambda *_: None)
        torch.manual_seed(0)
        models.append(task.model())
        batches.append(splits.train.batch(torch.arange(8)))
    own, more = (model.state_dict() for model in models)
    assert {name.rsplit(".", 1)[0] for name in more.keys() - own.keys()} == {"heads.1.described"}
    assert all(torch.equal(own[name], more[name]) for name in own)
    assert batches[1].keys() - batches[0].keys() == {"descriptors"}
    assert "descriptors" not in own
    outputs = [model(batches[0]["inputs"]) for model in models]
    assert type(outputs[0][1])._fields == ("logits", "guided", "texture")
    before, after = plain.losses(outputs[0], batches[0]), asked.losses(outputs[1], batches[1])
    assert torch.equal(before[0], after[0])
    extra = descriptors.loss(outputs[1][1].descriptors, batches[1]["descriptors"], acr.LEXICON)
    assert after[1].item() == pytest.approx((before[1] + 0.5 * extra).item(), rel=1e-5)
    with pytest.raises(UsageError, match="source tn3k has no descriptors"):
        Thyroid(source="tn3k", descriptors=1.0)
    with pytest.raises(UsageError, match="must not be negative"):
        Thyroid(descriptors=-1.0)


def test_every_word_of_the_published_data_has_a_term() -> None:
    if not SHARED.is_dir():
        pytest.skip("the data are not here")
    cases = ddti.load(SHARED / "ddti").cases
    known = descriptors.labels(cases, acr.DDTI) >= 0
    there = torch.tensor([[d.key in case.descriptors for d in acr.DDTI] for case in cases])
    assert torch.equal(known, there)
    tumours = breast.load(SHARED / "breast", lambda *_: None, "BIRADS").cases
    known = descriptors.labels(tumours, breast.LEXICON) >= 0
    # Two calcifications are "indefinable".
    assert (~known).sum(0).tolist() == [0, 0, 0, 0, 0, 2]
    assert Breast(data=SHARED / "breast", descriptors=1.0).lexicon == breast.LEXICON


def test_they_are_trained_and_judged(mtbench: Mtbench, tmp_path: Path) -> None:
    code, _, err = mtbench(
        "run", "-m", "ew", "--cases", 24, "--image-size", 32, "--width", 2, "--epochs", 1,
        "--threads", 1, "--set", "descriptors=1", "--out", tmp_path,
    )  # fmt: skip
    assert (code, err) == (0, "")
    [run] = tmp_path.glob("thyroid/ew/*")
    judged = json.loads((run / "fitted.json").read_text())["descriptors"]
    assert list(judged) == [d.name for d in acr.LEXICON]
    assert all(0 <= entry["right"] <= entry["known"] for entry in judged.values())


def test_they_are_shown(tmp_path: Path) -> None:
    task = Thyroid(**SMALL, descriptors=1.0)
    sure = [F.one_hot(torch.tensor(0), len(descriptor.terms)) for descriptor in acr.LEXICON]
    terms = 9.0 * torch.cat(sure)[None]

    def model(inputs: torch.Tensor) -> list[Any]:
        plane = torch.full(inputs.shape, -5.0)
        plane[..., 10:20, 8:24] = 5.0
        category = torch.tensor([[0.0, 0.0, 0.0, 9.0, 0.0]])
        return [plane, Described(category, torch.zeros(1, 13), torch.zeros(1, 0), terms)]

    pixels = np.random.default_rng(0).integers(20, 220, (80, 110), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    record = task.predict(
        Trained(model, "a model", {}), tmp_path / "a.png", tmp_path / "a",
        spacing=0.2, report="both", plane=("transverse",),
    )  # fmt: skip
    [found] = record["views"]
    assert found["descriptors"]["composition"]["term"] == "cystic"
    assert found["assessment"]["points"] == (0, 0)
    assert found["assessment"]["says"][0] == "by points TR1: no biopsy, no follow-up"
    assert found["means"] == "ACR TI-RADS TR4"
    assert record["scale"] == "ACR TI-RADS category"
    assert {row["system"] for row in record["thresholds"]} == {
        "ACR TI-RADS", "EU-TIRADS", "K-TIRADS"
    }  # fmt: skip
    page = (tmp_path / "a_report.html").read_text()
    for words in (
        "Likeliest term", "By points: TR1 (0)", "Category TR4", "not for a patient", "Ha et al.",
        "category TR4: biopsy from 15 mm", "more than 20 mm", "more than 10 to 15 mm, as chosen",
    ):  # fmt: skip
        assert words in page, words
    assert b"/Count 2" in (tmp_path / "a_report.pdf").read_bytes()


def test_low_and_high_say_of_what() -> None:
    assert Thyroid(source="ddti", target="low-high").meaning() == {
        "low": "TI-RADS 2 or 3 or 4a", "high": "TI-RADS 4b or 4c or 5"
    }  # fmt: skip
    assert Thyroid().meaning()["TR4"] == "ACR TI-RADS TR4"
    assert Breast().meaning()["4a"] == "BI-RADS 4a"
    assert Breast(source="malignancy").meaning()["benign"] == "benign"
