"""What does the loss look like around a trained network, and on the way there?

Trains the demo's LeNet on scikit-learn's digits, and draws the loss of the test digits on the plane
of two filter-normalised random directions, as contours and as a surface, and on the plane of the
training run's two main axes, with the path.

    python examples/loss_landscape.py --out landscape

writes landscape-contour.png, landscape-surface.png and landscape-run.png.

Needs scikit-learn and matplotlib: pip install "pntk[analysis]".
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch.nn import functional as F

from pntk.cli import digits
from pntk.representation import loss_landscape, random_direction, trajectory_pca


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="landscape", help="start of the names of the pictures")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--points", type=int, default=31, help="along each direction")
    given = parser.parse_args()

    train, test = digits.load()
    torch.manual_seed(0)
    model = digits.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = [copy.deepcopy(model.state_dict())]
    for _ in range(given.epochs):
        for batch in torch.randperm(len(train.labels)).split(64):
            loss = F.cross_entropy(model(train.images[batch]), train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        run.append(copy.deepcopy(model.state_dict()))

    began = time.perf_counter()
    x, y = random_direction(model, 0), random_direction(model, 1)
    found = loss_landscape(model, test, x, y, points=given.points, accuracy=True)
    seconds = time.perf_counter() - began
    found.plot_contour(f"{given.out}-contour.png", log=True)
    found.plot_surface(f"{given.out}-surface.png", log=True)
    centre = given.points // 2
    print(
        f"{found.losses.size} points in {seconds:.1f} s; at the weights loss "
        f"{found.losses[centre, centre]:.3f}, accuracy {found.accuracies[centre, centre]:.3f}; "
        f"lowest {found.losses.min():.3f}"
    )

    plane = trajectory_pca(run)
    far = 1.15 * abs(plane.path).max()
    found = loss_landscape(
        model, test, plane.x, plane.y, x_range=(-0.3 * far, far), y_range=(-0.65 * far, 0.65 * far),
        points=given.points, trajectory=plane.path,
    )  # fmt: skip
    found.plot_contour(f"{given.out}-run.png", log=True)
    shares = " and ".join(f"{share:.1%}" for share in plane.explained)
    print(f"the run's main axes hold {shares} of the squared distances to its end")


if __name__ == "__main__":
    main()
