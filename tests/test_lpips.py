"""LPIPS against torchmetrics on the same (random) backbone."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image.lpips import _LPIPS

from muti_control.evaluation.judges.photo_networks import Lpips


@pytest.fixture(scope="module")
def reference() -> _LPIPS:
    torch.manual_seed(0)
    return _LPIPS(pretrained=True, net="alex", pnet_rand=True)


@pytest.fixture(scope="module")
def backbone(reference, tmp_path_factory):
    """The reference's backbone in the layout torchvision writes."""
    slices = [getattr(reference.net, f"slice{k}") for k in range(1, 6)]
    state = {
        f"features.{name}": value.clone() for part in slices for name, value in part.state_dict().items()
    }
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, 64, 72)).astype(np.uint8)
    y = np.clip(x + rng.normal(0, [[[10]], [[30]], [[90]]], x.shape), 0, 255).astype(np.uint8)
    return x, y


def test_distances_are_those_of_torchmetrics(reference, backbone, pictures):
    tensors = [torch.from_numpy(p)[:, None].expand(-1, 3, -1, -1).float() / 127.5 - 1 for p in pictures]
    expected = reference(*tensors).detach().flatten().numpy()
    lpips = Lpips(backbone)
    result = [lpips.distance(x, y) for x, y in zip(*pictures, strict=True)]
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert (expected > 1e-3).all() and (np.diff(result) > 0).all()
    assert lpips.distance(pictures[0][0], pictures[0][0]) == 0


def test_files_and_pictures_that_do_not_fit_are_told(backbone, pictures, tmp_path):
    state = torch.load(backbone, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "features.8.bias"}, tmp_path / "lacks.pth")
    torch.save(state | {"features.3.weight": torch.zeros(1)}, tmp_path / "shape.pth")
    for name, key in (("lacks", "features.8.bias"), ("shape", "features.3.weight"), ("nowhere", "nowhere")):
        with pytest.raises(ValueError, match=key):
            Lpips(tmp_path / f"{name}.pth")
    with pytest.raises(ValueError, match="lin0"):
        Lpips(backbone, heads=backbone)
    x, y = (picture[0] for picture in pictures)
    for a, b in ((x, y[:2]), (x, y / 2), (x[:20], y[:20])):
        with pytest.raises(ValueError, match=r"expected|35 px"):
            Lpips(backbone).distance(a, b)
