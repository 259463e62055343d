"""The networks that `inspectd bench` runs, in PyTorch, with seeded random weights.

Each takes x [B, 3, 256, 256] and gives what the line needs of it, no more:

    resnet18-layer3, resnet50-layer3   outputs of layer1, layer2, layer3 (torchvision's networks)
    compact                            the three heads of the embedded backbone, its real weights
    destseg                            mask [B, 1, 64, 64]
    ntsnet                             1 - cosine of teacher and student, three levels
    prn                                mask [B, 1, 256, 256], 10 prototypes a level
    mlff                               score map [B, 1, 64, 64]

The last four are the executable form of the specification (`specmodels.py`). Features of random
weights mean nothing; their speed is that of learned ones.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file

import places

SIDE = 256
BATCHES = (1, 8)
PROTOTYPES = 10


class ResNetLevels(nn.Module):
    """A torchvision ResNet up to layer3."""

    def __init__(self, net: torchvision.models.ResNet):
        super().__init__()
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.layers = nn.ModuleList([net.layer1, net.layer2, net.layer3])

    def forward(self, x):
        x = self.stem(x)
        levels = []
        for layer in self.layers:
            x = layer(x)
            levels.append(x)
        return tuple(levels)


class Compact(nn.Module):
    """The embedded backbone; names are those of `assets/compact_f16.safetensors`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        c_in = 32
        for n, (width, c_out) in enumerate([(64, 64), (96, 128), (160, 256)], 1):
            setattr(self, f"down{n}", nn.Conv2d(c_in, width, 3, 2, 1))
            block = {f"conv{i}": nn.Conv2d(width, width, 3, 1, 1) for i in (1, 2)}
            setattr(self, f"block{n}", nn.ModuleDict(block))
            setattr(self, f"head{n}", nn.Conv2d(width, c_out, 1))
            c_in = width

    def forward(self, x):
        x = F.relu(self.stem(x))
        levels = []
        for n in (1, 2, 3):
            x = F.relu(getattr(self, f"down{n}")(x))
            block = getattr(self, f"block{n}")
            x = F.relu(x + block["conv2"](F.relu(block["conv1"](x))))
            levels.append(getattr(self, f"head{n}")(x))
        return tuple(levels)


class DeSTSeg(nn.Module):
    def __init__(self, spec: ModuleType):
        super().__init__()
        self.net = spec.DeSTSegNet()

    def forward(self, x):
        mask, _features = self.net(x)
        return mask


class NTSNet(nn.Module):
    def __init__(self, spec: ModuleType):
        super().__init__()
        self.teacher = spec.Trunk("resnet18", 3)
        self.student = spec.NTSStudent()

    def forward(self, x):
        pairs = zip(self.teacher(x), self.student(x), strict=True)
        return tuple(1 - (F.normalize(t) * F.normalize(s)).sum(1, keepdim=True) for t, s in pairs)


class PRN(nn.Module):
    def __init__(self, spec: ModuleType):
        super().__init__()
        self.net = spec.PRN()
        for level in (1, 2, 3):
            side = SIDE >> (level + 1)
            maps = torch.randn(PROTOTYPES, 32 << level, side, side)
            self.register_buffer(f"prototypes{level}", maps)

    def forward(self, x):
        return self.net(x, [self.prototypes1, self.prototypes2, self.prototypes3])


class MLFF(nn.Module):
    def __init__(self, spec: ModuleType):
        super().__init__()
        self.net = spec.MLFF()

    def forward(self, x):
        _features, score = self.net(x)
        return score


NETS = ("resnet18-layer3", "resnet50-layer3", "compact", "destseg", "ntsnet", "prn", "mlff")

# Those with an INT8 form: convolutions make up nearly all of their time.
INT8_NETS = ("resnet18-layer3", "resnet50-layer3", "compact", "destseg")


def build(name: str, spec: Path = places.SPEC) -> nn.Module:
    """The network `name` in eval mode; the same numbers at every call."""
    torch.manual_seed(0)
    if name == "compact":
        net = Compact()
        weights = load_file(places.REPOSITORY / "assets" / "compact_f16.safetensors")
        net.load_state_dict({key: value.float() for key, value in weights.items()})
        return net.eval()
    if name.startswith("resnet"):
        net = ResNetLevels(getattr(torchvision.models, name.removesuffix("-layer3"))(weights=None))
    else:
        net = {"destseg": DeSTSeg, "ntsnet": NTSNet, "prn": PRN, "mlff": MLFF}[name](read(spec))
    randomise(net)
    return net.eval()


def picture(batch: int) -> torch.Tensor:
    """[B, 3, 256, 256], values as after ImageNet normalisation."""
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def read(spec: Path) -> ModuleType:
    """The module at `spec`, with its folder on the path as if it were run from there."""
    if not spec.is_file():
        sys.exit(f"{spec}: not there; --spec says where specmodels.py is")
    sys.path.insert(0, str(spec.parent))
    loader = importlib.util.spec_from_file_location(spec.stem, spec)
    module = importlib.util.module_from_spec(loader)
    loader.loader.exec_module(module)
    return module


@torch.no_grad()
def randomise(net: nn.Module) -> None:
    """Convolutions as torchvision initialises ResNets (He et al. 2015, fan out); batch norms that
    no engine can take for the identity."""
    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.weight.uniform_(0.5, 1.0)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.75, 1.25)
