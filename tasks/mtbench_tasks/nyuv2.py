"""NYUv2: indoor scenes with 13 classes, depth and surface normals."""

from typing import ClassVar

from mtbench_tasks._dense.folder import Layout
from mtbench_tasks._dense.task import Dense


class NYUv2(Dense):
    """Segmentation into 13 classes, depth in metres and surface normals of an indoor image.

    The pre-processed folder of MTAN (Liu et al., CVPR 2019, arXiv 1803.10704), 288 x 384 pixels:
    ``train/`` (795 images) and ``val/`` (654), each with ``image``, ``label``, ``depth`` and
    ``normal`` and in these ``0.npy``, ``1.npy``, ...

    Objectives, each a mean over the labelled pixels of the batch: ``segmentation``, cross-entropy;
    ``depth``, absolute error; ``normals``, 1 minus the inner product with the truth. All nine
    metrics of the papers are primary, so that delta-m averages over them.

    Splits: ``val/`` is the test split. No validation split is published: a tenth of ``train/`` is
    held out, drawn by the seed. The folder does not say which images show the same room, so
    validation rooms may occur in training. Published results train on all of ``train/`` and average
    the last ten epochs' scores on ``val/``.

    Recipe: that of the papers (Adam, 1e-4, 200 epochs, batches of 2, of 8 with DeepLab), except
    that the last epoch is tested.
    """

    name = "nyuv2"
    objectives = ("segmentation", "depth", "normals")
    layout = Layout(
        13,
        {
            "image": ("image",),
            "segmentation": ("label",),
            "depth": ("depth",),
            "normals": ("normal",),
        },
    )
    batch_sizes: ClassVar = {"segnet_mtan": 2, "deeplab_resnet50": 8}
