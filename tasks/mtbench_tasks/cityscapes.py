"""Cityscapes: street scenes with 7 classes and inverse depth."""

from typing import ClassVar

from mtbench_tasks._dense.folder import Layout
from mtbench_tasks._dense.task import Dense


class Cityscapes(Dense):
    """Segmentation into 7 classes and inverse depth of a street image.

    The pre-processed folder of MTAN (Liu et al., CVPR 2019, arXiv 1803.10704), 128 x 256 pixels:
    ``train/`` (2,975 images) and ``val/`` (500), each with ``image``, ``label_7`` (or ``label``)
    and ``depth`` and in these ``0.npy``, ``1.npy``, ...; other label folders are not read. Depth is
    Cityscapes' disparity, scaled to 0 to 0.49: near things have large values, far ones nearly 0, so
    that published relative errors are in the tens (of 1, not of per cents).

    Objectives, each a mean over the labelled pixels of the batch: ``segmentation``, cross-entropy;
    ``depth``, absolute error. All four metrics of the papers are primary, so that delta-m averages
    over them.

    Splits: ``val/`` is the test split. No validation split is published: a tenth of ``train/`` is
    held out, drawn by the seed. The folder does not say which images show the same street, so
    validation streets may occur in training. Published results train on all of ``train/`` and
    average the last ten epochs' scores on ``val/``.

    Recipe: that of the papers (Adam, 1e-4, 200 epochs, batches of 8, of 64 with DeepLab), except
    that the last epoch is tested.
    """

    name = "cityscapes"
    objectives = ("segmentation", "depth")
    layout = Layout(
        7, {"image": ("image",), "segmentation": ("label_7", "label"), "depth": ("depth",)}
    )
    batch_sizes: ClassVar = {"segnet_mtan": 8, "deeplab_resnet50": 64}
