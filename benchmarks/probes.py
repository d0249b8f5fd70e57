"""Linear probes: how much of the simulator's state and of the reward ridge regression reads off some inputs.

Inputs may be the codes' vectors, a quantizer's continuous features or components of raw frames. The regression is
fitted on some episodes and scored on others. Its penalty is chosen on a fifth of the episodes it is fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from voc_rl.data import Episodes
from voc_rl.data.hdf5 import FIRST
from voc_rl.errors import VOCError

# task -> how many numbers of the flat state observation are positions; the rest are velocities (dm_control's order:
# walker: 14 orientations, 1 height, 9 velocities; cheetah: 8 positions, 9 velocities)
POSITIONS = {"walker-walk": 15, "cheetah-run": 8}
PENALTIES = 10.0 ** np.arange(-6, 2)  # per row, of standardised inputs
CHOOSE_ON = 5  # every fifth episode


def probed_rows(dataset: Episodes) -> np.ndarray:
    """Rows that a step led to, int64: at the first row of an episode no reward arrives and nothing has moved."""
    return np.flatnonzero(dataset.step_type != FIRST)


def probe_targets(dataset: Episodes, task: str) -> dict[str, np.ndarray]:
    """What is read off: position (N, P), velocity (N, V) and reward (N, 1) of the probed rows, simulator's units.

    Raises:
        VOCError: a dataset without simulator states.
    """
    if dataset.state is None:
        raise VOCError(f"The episodes of {task} hold no simulator states; a probe has nothing to read.")
    rows, count = probed_rows(dataset), POSITIONS[task]
    state = dataset.state[rows].astype(np.float64)
    return {
        "position": state[:, :count],
        "velocity": state[:, count:],
        "reward": dataset.reward[rows, None].astype(np.float64),
    }


def probe(
    inputs: np.ndarray,
    targets: Mapping[str, np.ndarray],
    episode: np.ndarray,
    test_inputs: np.ndarray,
    test_targets: Mapping[str, np.ndarray],
) -> dict[str, float | None]:
    """R² on the test rows of every target (see ``r_squared``), a penalty chosen for each.

    Args:
        inputs: (N, D). targets: name -> (N, T). episode: (N,) the episode of each row, by which rows are held out.
        test_inputs: (M, D). test_targets: the same names -> (M, T).

    Raises:
        VOCError: fewer than two episodes.
    """
    episodes = np.unique(episode)
    if len(episodes) < 2:
        raise VOCError("A probe needs at least two episodes to be fitted on: one chooses its penalty.")
    choosing = np.isin(episode, episodes[::CHOOSE_ON])
    part, whole = Ridge(inputs[~choosing]), Ridge(inputs)
    found = {}
    for name, target in targets.items():
        scores = [
            r_squared(target[choosing], part.predict(target[~choosing], penalty, inputs[choosing]))
            for penalty in PENALTIES
        ]
        best = PENALTIES[int(np.argmax([-np.inf if score is None else score for score in scores]))]
        found[name] = r_squared(test_targets[name], whole.predict(target, best, test_inputs))
    return found


class Ridge:
    """Ridge regression on the same standardised inputs (N, D), for any targets and penalties after one decomposition.

    Minimises the mean over rows of (y - b - w x)^2, plus penalty |w|^2. A constant input has no weight.
    """

    def __init__(self, inputs: np.ndarray) -> None:
        inputs = inputs.astype(np.float64)
        self.mean, spread = inputs.mean(0), inputs.std(0)
        self.scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 1e-9)
        self.x = (inputs - self.mean) * self.scale
        self.values, self.vectors = np.linalg.eigh(self.x.T @ self.x / len(self.x))

    def predict(self, targets: np.ndarray, penalty: float, inputs: np.ndarray) -> np.ndarray:
        """Fit (N, T) and predict the targets of other inputs: (M, D) -> (M, T)."""
        mean = targets.mean(0)
        covariance = self.x.T @ (targets - mean) / len(self.x)
        shrunk = (self.vectors.T @ covariance) / (np.maximum(self.values, 0.0) + penalty)[:, None]
        return mean + ((inputs - self.mean) * self.scale) @ (self.vectors @ shrunk)


def r_squared(truth: np.ndarray, predicted: np.ndarray) -> float | None:
    """1 - squared error / variance of each column of (M, T), averaged over columns that vary; None where none does."""
    variance, error = truth.var(0), ((truth - predicted) ** 2).mean(0)
    varies = variance > 1e-12
    return float((1 - error[varies] / variance[varies]).mean()) if varies.any() else None
