"""Small networks with the shapes of trouble: padded shortcuts, concatenation, depthwise, fixed sizes, unknown steps."""

import torch
from torch import nn
from torch.nn import functional as F


class Padded(nn.Module):
    """A residual stage whose shortcut pads channels with zeros (option A of the original ResNet)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.output = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.output(x.mean(dim=(2, 3)))


class Branches(nn.Module):
    """Two branches concatenated before one consumer."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(1, 5, 3, padding=1)
        self.right = nn.Conv2d(1, 6, 1)
        self.join = nn.Conv2d(11, 8, 3)
        self.output = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat((F.relu(self.left(x)), torch.sigmoid(self.right(x))), dim=1)
        return self.output(F.adaptive_avg_pool2d(F.relu(self.join(x)), 1).flatten(1))


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Preactivated(nn.Module):
    """A stream read through a norm of each consumer's own (pre-activation residual block)."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 5, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(6)
        self.output = nn.Linear(6, 3)

    def forward(self, x):
        x = self.conv(x)
        x = x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return self.output(F.relu(self.norm3(x)).mean((2, 3)))


class FixedView(nn.Module):
    """Writes the number of features into its code."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 36, 7)
        self.output = nn.Linear(7, 3)

    def forward(self, x):
        return self.output(F.relu(self.fc(F.relu(self.conv(x)).view(-1, 4 * 36))))


class Chunked(nn.Module):
    """Halves its channels, so that they must stay an even number in their places."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.one, self.other = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)
        self.output = nn.Linear(5, 3)

    def forward(self, x):
        first, second = F.relu(self.conv(x)).chunk(2, dim=1)
        return self.output(F.relu(self.one(first) + self.other(second)).mean((2, 3)))


class Unknown(nn.Module):
    """Multiplies activations with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.output = nn.Linear(64, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("matrix", torch.randn(6, 6))

    def forward(self, x):
        return self.output(F.relu(self.fc2(torch.matmul(F.relu(self.fc1(x.flatten(1))), self.matrix))))


class Twice(nn.Module):
    """Uses one layer two times."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.output = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.fc1(x.flatten(1)))
        return self.output(F.relu(self.fc2(F.relu(self.fc2(x)))))


class Moody(nn.Module):
    """Takes a course that depends on the data."""

    def __init__(self):
        super().__init__()
        self.fc1, self.output = nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.fc1(x.flatten(1)))
        return self.output(x if x.sum() > 0 else -x)


SHAPE = (1, 8, 8)


def shaken(model, seed=0):
    """Random norms and biases, so that nothing is zero or one by chance; ready for evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name in ("running_mean", "bias", "running_var", "weight"):
            value = getattr(module, name, None)
            if isinstance(value, torch.Tensor) and value.dim() == 1:
                drawn = torch.rand(value.shape, generator=generator)
                value.data.copy_(drawn + 0.5 if name in ("running_var", "weight") else drawn - 0.5)
    return model.eval()


def images(count=4, shape=SHAPE, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def chain(*layers):
    return nn.Sequential(*layers).eval()


def linear(weight, bias=None):
    """A linear layer with these numbers."""
    weight = torch.as_tensor(weight, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, torch.as_tensor(bias or [0.0] * len(weight), dtype=torch.float32)
    return layer


def relative(one, other):
    return float((one - other).abs().max() / one.abs().max())
