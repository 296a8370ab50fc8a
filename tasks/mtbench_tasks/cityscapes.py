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

    Networks: ``segnet_mtan``, on which CAGrad, Nash-MTL and FAMO compare; what balances is the
    SegNet, and the attention modules belong to the heads (some published code counts them as
    shared). ``stl`` trains the same network with one head, where the papers' single-task rows are
    plain SegNets. ``deeplab_resnet50``, LibMTL's, here from random weights. Both have batch norm,
    so that samples mix: a method that looks at single samples (RLAR) sees what a sample does to the
    whole batch's loss, and a data-parallel run normalises by each rank's own samples.

    Args:
        data: the pre-processed folder, with train/ and val/ in it.
        network: ``segnet_mtan`` or ``deeplab_resnet50``.
        width: channels of the network's first level.
        augmentation: random crops enlarged by 1, 1.2 or 1.5, and mirroring, as CAGrad, Nash-MTL
            and FAMO do; MTAN and LibMTL report without.
        validation: the share of the training images that is held out for validation.
        strict: whether a broken file ends the run; otherwise its sample is dropped and noted.
    """

    name = "cityscapes"
    objectives = ("segmentation", "depth")
    layout = Layout(
        7, {"image": ("image",), "segmentation": ("label_7", "label"), "depth": ("depth",)}
    )
    batch_sizes: ClassVar = {"segnet_mtan": 8, "deeplab_resnet50": 64}
