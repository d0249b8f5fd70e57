"""Following a policy through logged rows: Model-free Monte Carlo (Fonteneau et al. 2010), as one chain over rows.

At row t the policy draws an action a'; the chain goes on where a row with nearly the same frame and nearly the action
a' went on. Every step is a real one, so nothing is bootstrapped and no densities are needed; what goes wrong is the
jump, whose size ``distance`` tells.

The nearest rows by frame are found once, for all policies; a policy then picks among them by its actions.

Rows about to end lie at the edge of the data, so that the rows near them have longer to live on average: every jump of
a chain would gain time. Where episodes terminate, the rows that are followed are therefore weighed so that they lie
about the row they stand for (``_balanced``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes, going_rows, taken_actions
from voc_rl.errors import VOCError, check_gamma

COMPONENTS = 48  # of the frames' features, in which rows are compared
CANDIDATES = 128  # nearest rows by frame, among which the action decides
TYPICAL = 32  # the distance to the 32nd nearest row is the unit of length
ROWS_AT_ONCE = 256
BALANCED = 8  # leading components in which jumps are balanced where episodes terminate
RIDGE = 0.02  # holds the balance back where it would rest on few rows; larger ones left Hopper's values too high
EVEN = 0.05  # a mean offset that is left as it is
NEWTON_STEPS = 50  # at most; most rows take five
LONGEST_STEP = 5.0
CLOSE = 1e-3  # a step that changes next to nothing
LEVEL = 1e-5  # rounding of what is minimised


@dataclass(frozen=True)
class Candidates:
    """Rows like each row: row int64 (N, K), rows with a step left, nearest first; squared float32 (N, K), squared
    distances in units of the typical distance to the 32nd; taken float32 (N, A), the actions taken at the rows; place
    float32 (N, C), the rows' first components in these units."""

    row: np.ndarray
    squared: np.ndarray
    taken: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class StitchedChain:
    """Where a policy goes from each row: arrival int64 (N, M), rows arrived at by M draws of its action; distance
    float32 (N, M), how far the row that it followed was, frame and action together (1: typical); terminal bool (N,).
    excluded: share of the rows none of whose candidates was allowed, where excluded ones are followed (``stitch``)."""

    arrival: np.ndarray
    distance: np.ndarray
    terminal: np.ndarray
    excluded: float = 0.0

    def values(
        self, reward: np.ndarray, gamma: float, correction: np.ndarray | None = None, tail: float = 1e-4
    ) -> np.ndarray:
        """V (N,) float64 of the chain for rewards (N,) on arrival: V = mean_m r[u] + gamma V[u], u the arrivals.

        ``correction`` (N,): added at every step from a row, e.g. ``jump_correction``.
        """
        check_gamma(gamma)
        going = gamma * ~self.terminal
        arrival = np.ascontiguousarray(self.arrival.T)  # the mean of a few long rows is quick
        values = np.full(len(reward), float(np.mean(reward[arrival])) / (1.0 - gamma))
        steps = 1 if gamma == 0 else int(np.log(tail) / np.log(gamma)) + 1
        for _ in range(steps):
            values = (reward + going * values)[arrival].mean(0) + (0.0 if correction is None else correction)
        return np.where(self.terminal, 0.0, values)

    def jump_correction(self, value: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """What the jumps from each row are worth, float64 (N,), as far as a critic knows.

        value (N,): its V, the policy's own action at each row; taken (N,): its Q of the action taken there. A jump to
        row u replaces Q(o_t, a') by Q(o_u, a_u): their mean difference, added back, makes the chain's values exact
        where the critic is right about differences of near pairs, and changes nothing where the jump is exact.
        """
        return value - taken[self.arrival - 1].mean(1)

    def futures(self, rows: np.ndarray, gamma: float, rng: np.random.Generator) -> np.ndarray:
        """A row at a geometric time from each of ``rows`` (any shape), int64; -1 where the chain ended before."""
        return follow(self.arrival[None], self.terminal, np.zeros_like(rows), rows, gamma, rng)


def follow(
    arrival: np.ndarray,
    terminal: np.ndarray,
    policies: np.ndarray,
    rows: np.ndarray,
    gamma: float | np.ndarray,
    rng: np.random.Generator,
    known: np.ndarray | None = None,
) -> np.ndarray:
    """A row at a geometric time from each of ``rows`` along its policy's chain, int64; -1 where the chain ended before.

    Args:
        arrival: int64 (P, N, M), of the chains of P policies. terminal: bool (N,). policies, rows: int64, of one shape.
        gamma: one discount, or discounts that broadcast to that shape.
        known: bool of that shape, where the first step is the logged one; None: nowhere.
    """
    shape, steps = rows.shape, rng.geometric(1.0 - gamma, size=rows.shape).ravel()
    policies, rows = policies.ravel(), rows.ravel()
    at = np.where(terminal[rows], -1, rows)
    going, k = np.flatnonzero(at >= 0), 0
    while len(going):
        k, row = k + 1, at[going]
        arrived = arrival[policies[going], row, rng.integers(arrival.shape[2], size=len(row))]
        if k == 1 and known is not None:
            arrived = np.where(known.ravel()[going], row + 1, arrived)
        # arrival at the terminal row counts; what would come after it does not exist
        more = steps[going] > k
        ended = terminal[arrived] & more
        at[going] = np.where(ended, -1, arrived)
        going = going[more & ~ended]
    return at.reshape(shape)


def draw_along(
    arrival: np.ndarray, terminal: np.ndarray, policies: np.ndarray, rows: np.ndarray, known: np.ndarray, per_row: int,
    gamma: float | np.ndarray, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Rows int64 (B, per_row) that ``follow`` arrives at from B contexts: ``per_row`` futures of each; -1 for END.

    Args:
        policies, rows: int64 (B,), of the contexts.
        known: bool (B,), whether the first action is the one that was taken; else the policy draws it, as it has to at
            last rows, where none was taken.
        gamma: one discount, or those of the contexts, float64 (B,).
    """
    shape = (len(rows), per_row)
    policies, rows, known = (np.broadcast_to(x[:, None], shape) for x in (policies, rows, known))
    discount = gamma[:, None] if isinstance(gamma, np.ndarray) else gamma
    return follow(arrival, terminal, policies, rows, discount, rng, known)


def principal_components(features: Tensor, count: int) -> Tensor:
    """The first components float32 (N, count) of features (N, F), each with its own spread; fewer where F is less."""
    centred = features.float() - features.float().mean(0)
    vectors = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors.flip(1)
    return centred @ vectors[:, :count]


def check_row_features(features: Tensor, rows: int) -> None:
    """Finite features (N, F) of N rows.

    Raises:
        VOCError: no features, another number of them than of rows, or NaN features.
    """
    if features.ndim != 2 or len(features) != rows or features.shape[1] == 0:
        raise VOCError(f"Features of shape {tuple(features.shape)} do not fit {rows} rows; one per row is needed.")
    if not bool(features.isfinite().all()):
        raise VOCError("Features hold NaN or infinity; finite features are needed.")


@torch.no_grad()
def find_candidates(dataset: Episodes, features: Tensor, count: int = CANDIDATES) -> Candidates:
    """The rows most like each row of ``dataset`` by its continuous features (N, F), for every policy to choose among.

    Of more equally near rows than ``count`` (a fixed reset, still frames) every ``ROWS_AT_ONCE`` rows get a random
    sample of their own. Computed where the features are.

    Raises:
        VOCError: what ``check_row_features`` refuses, or no step in the data.
    """
    check_row_features(features, len(dataset))
    going = torch.from_numpy(going_rows(dataset)).to(features.device)
    count = min(count, len(going))
    view = principal_components(features, COMPONENTS)
    lengths, mixing = view.square().sum(1), torch.Generator().manual_seed(0)
    rows, squared = np.empty((len(view), count), np.int64), np.empty((len(view), count), np.float32)
    for first in range(0, len(view), ROWS_AT_ONCE):
        own = view[first : first + ROWS_AT_ONCE]
        # topk takes ties by their order, which in data sorted by behaviour would be those of one behaviour
        mixed = going[torch.randperm(len(going), generator=mixing).to(going.device)]
        others = view[mixed]
        place = (lengths[mixed] - 2 * own @ others.T).topk(count, largest=False).indices
        # the products above lose small distances to rounding; equal frames are at distance 0
        distance = (own[:, None] - others[place]).square().sum(2)
        distance, order = distance.sort(stable=True)
        rows[first : first + ROWS_AT_ONCE] = mixed[place.gather(1, order)].cpu().numpy()
        squared[first : first + ROWS_AT_ONCE] = distance.cpu().numpy()
    unit, spread = float(np.median(squared[:, min(TYPICAL, count) - 1])), 2.0 * float(view.var(0, False).sum())
    if unit <= 1e-6 * spread:  # most frames are there many times: typical is the distance of any two rows
        unit = spread
    unit = max(unit, 1e-12)
    place = (view[:, :BALANCED] / unit**0.5).cpu().numpy()
    return Candidates(rows, squared / unit, taken_actions(dataset), place)


def stitch(
    candidates: Candidates,
    drawn: np.ndarray,
    terminal: np.ndarray,
    rng: np.random.Generator,
    action_weight: float = 1.0,
    bandwidth: float = 0.2,
    allowed: np.ndarray | None = None,
) -> StitchedChain:
    """The chain of a policy whose actions at each row are ``drawn`` float32 (N, M, A).

    A candidate at squared distance d is followed with probability proportional to exp(-d / bandwidth): rows that are
    alike share the visits, so that what happened by chance after one of them does not become a law. Where ``terminal``
    has rows, these chances are balanced about the row.

    Args:
        action_weight: length of a unit of action, in typical distances of frames.
        bandwidth: of that kernel, in squared typical distances.
        allowed: bool (N,), rows that may be followed; None: all. Where none of a row's candidates may be, one
            of them all is drawn by the kernel all the same; ``StitchedChain.excluded`` says at what share of the rows.
    """
    count, draws = drawn.shape[:2]
    arrival, distance = np.empty((count, draws), np.int64), np.empty((count, draws), np.float32)
    excluded, ends = 0, bool(terminal.any())
    place, components = candidates.place, np.ascontiguousarray(candidates.taken.T)
    for first in range(0, count, 16 * ROWS_AT_ONCE):
        some = slice(first, first + 16 * ROWS_AT_ONCE)
        rows, frames = candidates.row[some], candidates.squared[some]
        if allowed is not None:
            usable = allowed[rows]
            lacking = ~usable.any(1)
            usable[lacking] = True
            excluded += int(lacking.sum())
            frames = np.where(usable, frames, np.inf)
        taken = [component[rows] for component in components]
        # (n, C, K): sums over candidates are then of numbers in a row
        offsets = np.ascontiguousarray((place[rows] - place[some, None]).swapaxes(1, 2)) if ends else None
        for draw in range(draws):
            total = frames + action_weight**2 * _squared_distances(taken, drawn[some, draw])
            # the Gumbel trick: the largest of log-weights with Gumbel noise is a draw from the weights
            noise = np.log(np.maximum(rng.standard_exponential(total.shape, dtype=np.float32), 1e-30))
            cost = total / bandwidth if offsets is None else -_balanced(-total / bandwidth, offsets)
            best = (cost + noise).argmin(1)[:, None]
            arrival[some, draw] = np.take_along_axis(rows, best, 1)[:, 0] + 1
            distance[some, draw] = np.sqrt(np.take_along_axis(total, best, 1)[:, 0])
    return StitchedChain(arrival, distance, terminal, excluded / count)


def _squared_distances(components: list[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Of points (n, A) from K others each, whose A components are (n, K): float32 (n, K). Component by component, since
    NumPy takes four times as long for sums of a few numbers each."""
    found = np.zeros(components[0].shape, np.float32)
    for component, own in zip(components, points.T, strict=True):
        apart = component - own[:, None]
        found += apart * apart
    return found


def _balanced(log_weights: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Log-weights float32 (n, K) tilted along offsets float32 (n, C, K) so that the weighted mean of these is about 0.

    The weights of the adjusted Nadaraya-Watson estimator (Hall, Wolff and Yao 1999), which has no bias of first order
    at the edge of the data: of all weights with that mean the nearest to those given. The tilt minimises
    log sum_k exp(log_weights + offsets tilt) + RIDGE / 2 |tilt|^2, by Newton's method. A whole step overshoots where a
    tilt moves the weight to other rows: it is cut until it leads down.
    """
    means = (offsets @ _weights(log_weights)[..., None])[..., 0]  # (n, C)
    uneven = np.flatnonzero(np.abs(means).max(1) > EVEN)  # the rest need no tilt
    tilted = log_weights.copy()
    logs, along = log_weights[uneven], offsets[uneven]
    logs -= logs.max(1, keepdims=True)
    tilt = np.zeros((len(along), along.shape[1], 1), np.float32)
    step, lowest = np.zeros_like(tilt), np.full(len(along), np.inf, np.float32)
    for _ in range(NEWTON_STEPS):
        height, newton = _newton(logs, along, tilt + step)
        down = height <= lowest + LEVEL
        tilt[down] += step[down]
        lowest[down] = height[down]
        step = np.where(down[:, None, None], newton, step / 4)
        going = np.abs(step).max((1, 2)) > CLOSE
        if not going.all():
            tilted[uneven[~going]] += _moved(along[~going], tilt[~going])
            uneven, logs, along, tilt, step, lowest = (x[going] for x in (uneven, logs, along, tilt, step, lowest))
        if not len(uneven):
            break
    tilted[uneven] += _moved(along, tilt)
    return tilted


def _newton(logs: np.ndarray, along: np.ndarray, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What ``_balanced`` minimises, at a tilt (n, C, 1): (n,), and the step from there (n, C, 1), always a way down."""
    moved = logs + _moved(along, tilt)
    largest = moved.max(1, keepdims=True)
    height = largest[:, 0] + np.log(np.exp(moved - largest).sum(1)) + RIDGE / 2 * np.square(tilt).sum((1, 2))
    weighted = along * _weights(moved)[:, None]
    mean = weighted.sum(2)[..., None]  # (n, C, 1)
    curvature = weighted @ along.swapaxes(1, 2) - mean @ mean.swapaxes(1, 2)
    curvature += RIDGE * np.eye(along.shape[1], dtype=np.float32)
    step = -np.linalg.solve(curvature, mean + RIDGE * tilt)
    longest = np.abs(step).max((1, 2), keepdims=True)
    return height, step * np.minimum(LONGEST_STEP / np.maximum(longest, 1e-30), 1.0)


def _moved(offsets: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    """By how much a tilt (n, C, 1) along offsets (n, C, K) moves log-weights: (n, K)."""
    moved: np.ndarray = (tilt.swapaxes(1, 2) @ offsets)[:, 0]
    return moved


def _weights(logs: np.ndarray) -> np.ndarray:
    """Weights (n, K) of sum 1 from their logarithms."""
    weights = np.exp(logs - logs.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)
