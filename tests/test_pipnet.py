"""PIPNet's network and read-outs against an independent one, and what a gradient through them does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from data.biometrics import Biometrics
from ldm.checkpoint import CheckpointError
from muti_control.networks.config import PipNetConfig
from muti_control.networks.pipnet.export import export_onnx, export_release
from muti_control.networks.pipnet.meanface import neighbours, reverse_index, write_meanface
from muti_control.networks.pipnet.network import Maps, PipNet
from muti_control.networks.pipnet.reader import LandmarkReader
from muti_control.networks.pipnet.readout import losses, read_points, soft_points

WORDS = ["African", "Asian"]
PERSON = Biometrics("male", 40.0, "Asian", 4)


def spread(num: int) -> np.ndarray:
    """Any ``num`` points of a face."""
    return np.random.default_rng(3).uniform(0.15, 0.85, (num, 2))


def lively(net: nn.Module) -> nn.Module:
    """Random weights and statistics everywhere, so that every parameter matters."""
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand_like(value) + 0.5)
        elif name.startswith("biometrics."):
            value.copy_(torch.randn_like(value) * 0.2)
        elif value.is_floating_point() and value.ndim < 4:
            value.copy_(torch.rand_like(value) * 0.5 + 0.3)
        elif "_layer." in name:
            value.copy_(torch.randn_like(value) * 0.05)
    return net.eval()


class Reference(nn.Module):
    """PIPNet after its paper (arXiv 2003.03771): torchvision's trunk, and one point of one picture at a time."""

    def __init__(self, num: int, k: int) -> None:
        super().__init__()
        trunk = torchvision.models.resnet18(weights=None)
        for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(trunk, name))
        self.num, self.k = num, k
        for name, outputs in (("cls", num), ("x", num), ("y", num), ("nb_x", num * k), ("nb_y", num * k)):
            setattr(self, f"{name}_layer", nn.Conv2d(512, outputs, 1))

    def points_of(self, picture: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """A picture (S, S, 3) uint8 -> points (N, 2), fractions."""
        scaled = (picture / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        h = torch.tensor(scaled.transpose(2, 0, 1)[None], dtype=torch.float32)
        h = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(h))), 3, 2, 1)
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        score, x, y = (getattr(self, f"{name}_layer")(h)[0].detach().numpy() for name in ("cls", "x", "y"))
        nb_x, nb_y = (getattr(self, f"{name}_layer")(h)[0].detach().numpy() for name in ("nb_x", "nb_y"))
        grid = score.shape[-1]
        nearest = []
        for i in range(self.num):
            others = [j for j in range(self.num) if j != i]
            nearest.append(sorted(others, key=lambda j: ((mean[i] - mean[j]) ** 2).sum())[: self.k])
        votes: list[list[np.ndarray]] = [[] for _ in range(self.num)]
        own = []
        for i in range(self.num):
            row, column = np.unravel_index(score[i].argmax(), (grid, grid))
            own.append(np.array([column + x[i, row, column], row + y[i, row, column]]))
            for j in range(self.k):
                place = i * self.k + j
                vote = np.array([column + nb_x[place, row, column], row + nb_y[place, row, column]])
                votes[nearest[i][j]].append(vote)
        longest = max(map(len, votes))
        merged = [np.mean([o, *(v * longest)[:longest]], axis=0) for o, v in zip(own, votes, strict=True)]
        return np.stack(merged) / grid


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory):
    """A file like the public release's with random weights, and the network it is of."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("public")
    net = lively(Reference(20, 6))
    torch.save(net.state_dict(), folder / "epoch59.pth")
    mean = spread(20)
    write_meanface(folder / "meanface.txt", mean)
    return folder / "epoch59.pth", net, mean


@torch.no_grad()
def test_same_weights_same_points_as_an_independent_pipnet(public):
    path, reference, mean = public
    pictures = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    expected = np.stack([reference.points_of(picture, mean) for picture in pictures])
    reader = LandmarkReader.load(path)
    points, _ = reader(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the pictures differ"
    assert np.abs(points.numpy() - expected).max() < 1e-4


# ---------------------------------------------------------------- biometrics
@torch.no_grad()
def test_biometrics_change_nothing_until_trained_and_nothing_where_absent():
    torch.manual_seed(0)
    cfg = PipNetConfig(num_landmarks=5, num_neighbours=2, width=0.125, image_size=64, ethnicities=WORDS)
    net = PipNet(cfg).eval()
    picture, people = torch.rand(3, 3, 64, 64), torch.randn(3, 7)
    plain = net(picture)
    assert all(torch.equal(a, b) for a, b in zip(plain, net(picture, people), strict=True)), "zero at first"
    for layer in (net.biometrics.layer3, net.biometrics.layer4):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    present = torch.tensor([True, False, True])
    changed = net(picture, torch.where(present[:, None], people, torch.inf), present)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, changed, strict=True)), (
        "absent: exactly nothing"
    )
    assert all((a[0] - b[0]).abs().max() > 1e-3 for a, b in zip(plain, changed, strict=True))


# ---------------------------------------------------------------- read-outs
def clear_maps(grid: int = 8, k: int = 3, noise: float = 0.0) -> tuple[Maps, Tensor, np.ndarray]:
    """Maps of one point per cell of the grid, 1 at its cell and about 0 elsewhere, any offsets; the truth (N, 2)."""
    num = grid * grid
    rng = np.random.default_rng(1)
    truth = (
        np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), -1).reshape(-1, 2) + rng.random((num, 2))
    ) / grid
    nearest = neighbours(truth, k)
    score = torch.from_numpy(rng.normal(0, noise, (1, num, num))).float()
    score[0, range(num), range(num)] += 1
    x, y = (torch.from_numpy(rng.normal(0, 1, (1, num, num))).float() for _ in "xy")
    nb_x, nb_y = (torch.from_numpy(rng.normal(0, 1, (1, num * k, num))).float() for _ in "xy")
    for i in range(num):
        row, column = divmod(i, grid)
        x[0, i, i], y[0, i, i] = truth[i, 0] * grid - column, truth[i, 1] * grid - row
        for j in range(k):
            nb_x[0, i * k + j, i] = truth[nearest[i, j], 0] * grid - column
            nb_y[0, i * k + j, i] = truth[nearest[i, j], 1] * grid - row
    shaped = [m.view(1, -1, grid, grid) for m in (score, x, y, nb_x, nb_y)]
    return Maps(*shaped), reverse_index(nearest), truth


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_both_read_outs_are_unbiased_for_peaks_anywhere(noise):
    maps, reverse, truth = clear_maps(noise=noise)
    for read in (read_points, soft_points):
        points, confidence = read(maps, reverse)
        worst = np.abs(points[0].numpy() - truth).max() * 256
        assert worst < (0.01 if read is read_points or not noise else 0.5), f"{read.__name__}: {worst} px"
        assert confidence.min() > 0.8 and confidence.max() <= 1


def test_soft_read_out_has_a_gradient_everywhere_and_refuses_a_low_temperature():
    maps, reverse, _ = clear_maps(noise=0.1)
    leaves = Maps(*(m.clone().requires_grad_() for m in maps))
    points, _ = soft_points(leaves, reverse)
    points.square().sum().backward()
    for name, leaf in zip(Maps._fields, leaves, strict=True):
        assert torch.isfinite(leaf.grad).all() and leaf.grad.abs().max() > 0, name
    with pytest.raises(ValueError, match="at least 20"):
        soft_points(maps, reverse, temperature=1.0)


# ---------------------------------------------------------------- losses
def test_losses_against_plain_loops():
    rng = np.random.default_rng(0)
    batch, num, k, grid = 2, 7, 3, 4
    points = rng.uniform(-0.05, 1.05, (batch, num, 2))  # some lie outside of the picture
    nearest = neighbours(spread(num), k)
    score, x, y = rng.normal(size=(3, batch, num, grid, grid))
    nb_x, nb_y = rng.normal(size=(2, batch, num * k, grid, grid))
    squares, own, others = [], [[], []], [[], []]
    for b in range(batch):
        for i in range(num):
            column, row = np.clip(np.floor(points[b, i] * grid), 0, grid - 1).astype(int)
            goal = np.zeros((grid, grid))
            goal[row, column] = 1
            squares.append(((score[b, i] - goal) ** 2).mean())
            corner = np.array([column, row])
            for axis, of in enumerate((x, y)):
                own[axis].append(abs(of[b, i, row, column] - (points[b, i] * grid - corner)[axis]))
            for j in range(k):
                for axis, of in enumerate((nb_x, nb_y)):
                    place = (points[b, nearest[i, j]] * grid - corner)[axis]
                    others[axis].append(abs(of[b, i * k + j, row, column] - place))
    maps = Maps(*(torch.from_numpy(m) for m in (score, x, y, nb_x, nb_y)))
    result = losses(maps, torch.from_numpy(points), torch.from_numpy(nearest))
    expected = {
        "score": np.mean(squares),
        "offset": np.mean(own[0]) + np.mean(own[1]),
        "neighbour": np.mean(others[0]) + np.mean(others[1]),
    }
    for name, value in expected.items():
        assert result[name].item() == pytest.approx(value, rel=1e-5), name
    total = 10 * expected["score"] + expected["offset"] + expected["neighbour"]
    assert result["loss"].item() == pytest.approx(total, rel=1e-5)


# ---------------------------------------------------------------- files
@pytest.fixture(scope="module")
def small() -> LandmarkReader:
    torch.manual_seed(0)
    cfg = PipNetConfig(num_landmarks=9, num_neighbours=4, width=0.125, image_size=64, ethnicities=WORDS)
    return LandmarkReader(lively(PipNet(cfg)), spread(9), "skull").eval()


@torch.no_grad()
def test_every_form_of_the_file_gives_the_same_points(small, tmp_path):
    pictures = torch.rand(2, 3, 80, 80)
    small.save(tmp_path / "net.safetensors")
    again = LandmarkReader.load(tmp_path / "net.safetensors")
    assert again.role == "skull" and again.net.cfg == small.net.cfg
    for one, other in zip(again(pictures, [PERSON] * 2), small(pictures, [PERSON] * 2), strict=True):
        assert torch.equal(one, other)
    export_release(small, tmp_path / "skull")
    public = LandmarkReader.load(tmp_path / "skull" / "pipnet.pth", image_size=64)
    assert torch.equal(public(pictures)[0], small(pictures)[0])
    with pytest.raises(ValueError, match="takes no biometrics"):
        public(pictures, [PERSON] * 2)
    with pytest.raises(ValueError, match="'Inuit', the landmark network knows African, Asian"):
        small(pictures[:1], [Biometrics("male", 40.0, "Inuit", 4)])


@torch.no_grad()
def test_onnx_gives_the_same_points(small, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(small, tmp_path / "pipnet.onnx")
    pictures, people = torch.rand(3, 3, 64, 64), torch.randn(3, 7)
    session = onnxruntime.InferenceSession(str(tmp_path / "pipnet.onnx"))
    inputs = {"picture": pictures.numpy(), "attributes": people.numpy(), "present": np.ones(3, bool)}
    for one, other in zip(session.run(None, inputs), small(pictures, people), strict=True):
        assert np.abs(one - other.numpy()).max() < 1e-4


def test_a_mean_face_must_be_there_and_fit(small, tmp_path):
    torch.save(small.net.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"meanface\.txt cannot be read"):
        LandmarkReader.load(tmp_path / "bare.pth")
    write_meanface(tmp_path / "meanface.txt", spread(8))
    with pytest.raises(CheckpointError):
        LandmarkReader.load(tmp_path / "bare.pth")
