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
