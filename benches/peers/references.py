"""Writes what PyTorch makes of each network, for tests/nets_vs_specmodels.rs.

    python benches/peers/references.py FOLDER [NAME ...]
    INSPECTD_NETS=FOLDER cargo test --release --test nets_vs_specmodels -- --nocapture

For each network a safetensors file: seeded random weights under inspectd's names, `input`
[2, 3, 256, 256], and `output.0`, `output.1`, ... in the order of the graph's outputs. The networks are
those of ../shared/spec/tools/specmodels.py. Needs torch, torchvision, safetensors.
"""

import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / "../shared"
sys.path.insert(0, str(SHARED / "spec/tools"))
import specmodels  # noqa: E402

PROTOTYPES = 10


def randomize(net):
    """Batch norms as those of a trained network: no channel is dead, none is the identity."""
    g = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            shape = m.running_mean.shape
            m.running_mean.copy_(torch.randn(shape, generator=g) * 0.1)
            m.running_var.copy_(torch.rand(shape, generator=g) * 0.5 + 0.75)
            m.weight.data.copy_(torch.rand(shape, generator=g) * 0.5 + 0.5)
            m.bias.data.copy_(torch.randn(shape, generator=g) * 0.1)
    return net.eval()


class Levels(nn.Module):
    """A backbone under torchvision's names."""

    def __init__(self, name, upto):
        super().__init__()
        self.net = specmodels.Trunk(name, upto)

    def forward(self, x):
        return self.net(x)


def spread_logits(net, conv, x):
    """Random logits hardly vary; spread those of `conv` over the sigmoid, so that errors show."""
    seen = []
    hook = conv.register_forward_hook(lambda _, __, y: seen.append(y))
    net(x)
    hook.remove()
    scale = 2 / seen[0].std()
    conv.bias.data = (conv.bias - seen[0].mean()) * scale
    conv.weight.data *= scale


class DeSTSeg(specmodels.DeSTSegNet):
    def forward(self, x):
        n = lambda f: f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-12)
        seg, _ = super().forward(x)
        pairs = zip(self.teacher(x), self.student(x))
        return [seg] + [1 - (n(t) * n(s)).sum(1, keepdim=True) for t, s in pairs]


class NTSNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.teacher = specmodels.Trunk("resnet18", 3)
        self.student = specmodels.NTSStudent()

    def forward(self, x):
        pairs = zip(self.teacher(x), self.student(x))
        d = lambda t, s: 0.5 * (F.normalize(t) - F.normalize(s)).pow(2).sum(1, keepdim=True)
        return [d(t, s) for t, s in pairs]


class PRN(specmodels.PRN):
    def forward(self, x):
        return [super().forward(x, self.prototypes)]

    def draw_prototypes(self):
        """Maps with the mean and the deviation of each channel of the encoder's features."""
        g = torch.Generator().manual_seed(3)
        features = self.enc(torch.randn(4, 3, 256, 256, generator=g))[:3]
        self.prototypes = []
        for f in features:
            mean, std = f.mean((0, 2, 3), keepdim=True), f.std((0, 2, 3), keepdim=True)
            noise = torch.randn(PROTOTYPES, *f.shape[1:], generator=g)
            self.prototypes.append(F.relu(mean + std * noise))


class MLFF(specmodels.MLFF):
    def forward(self, x):
        return list(super().forward(x))


def destseg_name(name):
    """specmodels' name -> the published checkpoint's."""
    rules = [
        (r"^teacher\.", "teacher_net.encoder."),
        (r"^student\.encoder\.", "student_net.encoder."),
        (r"^student\.d(\d)\.", r"student_net.decoder_layer\1."),
        (r"^seg\.res\.", "segmentation_net.res."),
        (r"^seg\.aspp\.pool\.", "segmentation_net.head.0.aspp_feature_extractors.0.1."),
        (r"^seg\.aspp\.fuse\.", "segmentation_net.head.0.aspp_fusion_layer."),
        (r"^seg\.mid\.0\.", "segmentation_net.head.1."),
        (r"^seg\.mid\.1\.", "segmentation_net.head.2."),
        (r"^seg\.out\.", "segmentation_net.head.4."),
    ]
    branch = lambda m: f"segmentation_net.head.0.aspp_feature_extractors.{int(m[1]) + 1}."
    name = re.sub(r"^seg\.aspp\.br\.(\d)\.", branch, name)
    for pattern, ours in rules:
        name = re.sub(pattern, ours, name)
    if ".aspp_" in name:
        name = re.sub(r"\.0\.(\w+)$", r".conv.\1", name)
        name = re.sub(r"\.1\.(\w+)$", r".norm.\1", name)
    return name


def same(name):
    return name


def backbone_name(name):
    return name.removeprefix("net.")


NETS = {
    "resnet18": (lambda: Levels("resnet18", 4), backbone_name),
    "resnet34": (lambda: Levels("resnet34", 4), backbone_name),
    "resnet50": (lambda: Levels("resnet50", 4), backbone_name),
    "wide_resnet50_2": (lambda: Levels("wide_resnet50_2", 3), backbone_name),
    "destseg": (DeSTSeg, destseg_name),
    "ntsnet": (NTSNet, same),
    "prn": (PRN, same),
    "mlff_paper": (lambda: MLFF("paper"), same),
    "mlff_reference": (lambda: MLFF("reference"), same),
}


def write(name, folder):
    make, rename = NETS[name]
    torch.manual_seed(0)
    net = randomize(make())
    if isinstance(net, PRN):
        net.draw_prototypes()
    x = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    if isinstance(net, PRN):
        spread_logits(net, net.out, x)
    if isinstance(net, DeSTSeg):
        spread_logits(net, net.seg.out, x)
    tensors = {"input": x}
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        # a one-dimensional convolution is a 1x1 one to inspectd
        value = value.unsqueeze(3) if value.dim() == 3 else value
        tensors[rename(key)] = value.detach().clone().contiguous()
    if isinstance(net, PRN):
        for j, prototypes in enumerate(net.prototypes):
            tensors[f"prototypes.{j + 1}"] = prototypes.contiguous()
    for i, y in enumerate(net(x)):
        tensors[f"output.{i}"] = y.contiguous()
    save_file(tensors, folder / f"{name}.safetensors")
    print(name, "written", flush=True)


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    torch.set_num_threads(2)
    for name in sys.argv[2:] or NETS:
        write(name, folder)


if __name__ == "__main__":
    main()
