"""The dilated ResNet with ASPP heads, the larger of the field's two networks, of MONAI's blocks.

Of its batch normalisation `networks` tells.
"""

from monai.networks.blocks.aspp import SimpleASPP
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn
from torch.nn import functional as F

from mtbench.balancing.model import MultitaskModel
from mtbench_tasks._dense.networks import convolution, finished

RATES = (1, 12, 24, 36)
"""Dilations of the ASPP heads; the first kernel is 1 x 1."""


class DilatedResNet(ResNet):
    """ResNet-50 at an eighth of the resolution: its last two stages dilate instead of striding.

    Its parameters have the names and shapes of torchvision's ``resnet50``, at ``width=64``.

    Args:
        width: channels of the stem; the last stage hands over 32 times as many.
    """

    def __init__(self, width: int) -> None:
        planes = [width * 2**stage for stage in range(4)]
        super().__init__(
            "bottleneck", [3, 4, 6, 3], planes, spatial_dims=2, conv1_t_stride=2,
            feed_forward=False, bias_downsample=False,
        )  # fmt: skip
        for stage, dilation in ((self.layer3, 2), (self.layer4, 4)):
            for module in stage.modules():
                if isinstance(module, nn.Conv2d):
                    rate = dilation // 2 if module.stride == (2, 2) else dilation
                    module.stride = (1, 1)
                    if module.kernel_size == (3, 3):
                        module.dilation, module.padding = (rate, rate), (rate, rate)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the last stage's map, (B, 32 width, H / 8, W / 8)."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return (x,)


class ASPPHead(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., arXiv 1706.05587) and the prediction.

    MONAI's block: unlike the publication's it has no branch for the image's mean (whose batch
    norm fails on a last batch of one image), and normalises after the branches are joined.

    Args:
        width: of the ResNet.
        channels: of the prediction.
        unit: whether the prediction is a unit vector at each pixel.
    """

    def __init__(self, width: int, channels: int, unit: bool) -> None:
        super().__init__()
        branch = 4 * width
        self.layers = nn.Sequential(
            SimpleASPP(2, 32 * width, branch, dilations=RATES, acti_type="RELU"),
            convolution(branch * len(RATES), branch),
            nn.Conv2d(branch, channels, 1),
        )
        self.unit = unit

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return the prediction, (B, channels, H, W)."""
        small = self.layers(features[0])
        full = F.interpolate(small, scale_factor=8.0, mode="bilinear", align_corners=True)
        return finished(full, self.unit)


def deeplab_resnet50(width: int, channels: list[int], units: list[bool]) -> MultitaskModel:
    """Return the dilated ResNet-50 with an ASPP head per objective; z is its last map.

    Deviation: it starts from random weights, where published runs start from ImageNet's.

    Args:
        width: channels of the stem.
        channels: per objective.
        units: per objective, whether it predicts unit vectors.
    """
    heads = [ASPPHead(width, c, unit) for c, unit in zip(channels, units, strict=True)]
    return MultitaskModel(DilatedResNet(width), heads)
