"""Many episodes as one dataset: small arrays in memory, frames read when they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from voc_rl.data.fit import check_ends, check_fit, shared_spec, warn_of_makings
from voc_rl.data.frames import FrameStore, JoinedFrames
from voc_rl.data.hdf5 import (
    COLUMNS,
    FIRST,
    LAST,
    Episode,
    Shard,
    episode_shard,
    hdf5_files,
    read_shard,
    without_frames,
)
from voc_rl.data.places import Places, places_of
from voc_rl.data.rows import chosen
from voc_rl.data.spec import DataSpec
from voc_rl.data.window import Window
from voc_rl.errors import VOCError, check_count, check_share


class Episodes:
    """Episodes of one dataset, row after row (alignment of rows: ``voc_rl.data.hdf5``).

    Attributes:
        action (N, A), reward (N,), discount (N,) float32; step_type (N,) uint8; state, physics, log_prob,
        unclipped_action, policy_id: arrays with N rows, or None where a file lacks them.
        starts, ends (E,) int64: first row of each episode, and one past its last.
        episode (N,) int64: the episode a row belongs to. steps_left (N,) int64: steps until its last row.
        terminal (N,) bool: last rows whose discount is 0: there the episode truly ended, not by a time limit.
        spec: how the frames were made; a field in which the files differ is unsaid.
        source_rows (N,) int64: the same rows in the dataset that was opened (differs after ``subset``).
        stored_rows (N,) int64: the same rows in ``paths``, one file after another, with what was left out of them.
    """

    def __init__(self, shards: Sequence[Shard], stack: int = 3) -> None:
        check_count(stack, "stack")
        self._store: FrameStore | JoinedFrames = FrameStore(shards)
        self.stack = stack
        self.frame_shape = shards[0].frame_shape
        self.spec = shared_spec(shards)
        self.source_rows = self.stored_rows = np.arange(sum(shard.rows for shard in shards))
        columns = {
            name: np.concatenate([shard.arrays[name] for shard in shards])
            for name in COLUMNS
            if all(name in shard.arrays for shard in shards)
        }
        self._set_columns(columns)

    def _set_columns(self, columns: dict[str, np.ndarray]) -> None:
        self._columns = columns
        self.action, self.reward = columns["action"], columns["reward"]
        self.discount, self.step_type = columns["discount"], columns["step_type"]
        self.state, self.physics = columns.get("state"), columns.get("physics")
        self.log_prob, self.unclipped_action = columns.get("log_prob"), columns.get("unclipped_action")
        self.policy_id = columns.get("policy_id")
        self.starts = np.flatnonzero(self.step_type == FIRST)
        self.ends = np.append(self.starts[1:], len(self.reward))
        self.episode = np.repeat(np.arange(len(self.starts)), self.ends - self.starts)
        self.steps_left = self.ends[self.episode] - 1 - np.arange(len(self.reward))
        self.terminal = np.zeros(len(self.reward), bool)
        self.terminal[self.ends - 1] = self.discount[self.ends - 1] == 0

    @classmethod
    def open(cls, path: Places, stack: int = 3) -> Episodes:
        """Open one HDF5 file, or every ``*.hdf5`` / ``*.h5`` of a folder in the order of the numbers in their names.

        Several files or folders are one dataset, in the order in which they are given.

        Raises:
            VOCError: nothing there, no episode, a last step inside one, files that do not fit each other, or a damaged
                one.
        """
        places = [Path(place) for place in places_of(path)]
        named = Path(", ".join(map(str, places)))
        shards = [read_shard(file) for place in places for file in hdf5_files(place)]
        dataset = cls.from_shards(shards, named, stack)
        check_ends(dataset, named)
        return dataset

    @classmethod
    def from_shards(cls, shards: Sequence[Shard], path: Path, stack: int = 3) -> Episodes:
        """The rows of some files one after another; ``path`` is what messages call them.

        Raises:
            VOCError: no episode, or files that do not fit each other.
        """
        check_fit(shards)
        warn_of_makings(shards)
        shards = [shard for shard in shards if shard.rows]
        if not any((shard.arrays["step_type"] == FIRST).any() for shard in shards):
            raise VOCError(f"{path} holds zero episodes; at least one is needed.")
        if shards[0].arrays["step_type"][0] != FIRST:
            raise VOCError(f"{shards[0].path}: rows before its first step type 0 belong to no episode.")
        return cls(shards, stack)

    @classmethod
    def from_episodes(cls, episodes: Iterable[Episode], spec: DataSpec, source: Path, stack: int = 3) -> Episodes:
        """Whole episodes held in memory, frames too; ``source`` is what messages call them.

        Raises:
            VOCError: no episode, episodes that do not fit each other, or wrong shapes, dtypes or numbers.
        """
        shards, frames = [], []
        for i, episode in enumerate(episodes):
            shards.append(episode_shard(episode, Path(f"{source}, episode {i}"), spec))
            frames.append(np.asarray(episode.frames))
        if not shards:
            raise VOCError(f"{source} holds zero episodes; at least one is needed.")
        dataset = cls.from_shards(shards, source, stack)
        store = FrameStore(shards)
        store.hold(frames, source)
        dataset._store = store
        return dataset

    @classmethod
    def join(cls, datasets: Sequence[Episodes]) -> Episodes:
        """The episodes of datasets of any format, one dataset after another; frames are shared, not copied.

        Raises:
            VOCError: no dataset, or some of other stacks, or that do not fit each other.
        """
        if len({dataset.stack for dataset in datasets}) != 1:
            stacks = ", ".join(str(dataset.stack) for dataset in datasets) or "none"
            raise VOCError(f"Datasets with observations of {stacks} frames were asked for; equal numbers are needed.")
        if len(datasets) == 1:
            return datasets[0]
        shards = [Shard(own.paths[0], len(own), own.frame_shape, own._columns, own.spec) for own in datasets]
        joined = cls.from_shards(shards, shards[0].path, datasets[0].stack)
        joined._store = store = JoinedFrames([own._store for own in datasets])
        joined.stored_rows = np.concatenate(
            [first + own.stored_rows for first, own in zip(store.first, datasets, strict=False)]
        )
        return joined

    def whole(self, episode: int) -> Episode:
        """One episode with its frames; its last row is a last step, also where the files did not say so."""
        rows = np.arange(self.starts[episode], self.ends[episode])
        columns = {name: column[rows] for name, column in self._columns.items()}
        columns["step_type"] = columns["step_type"].copy()
        columns["step_type"][-1] = LAST
        if not self.has_frames:
            return Episode(frames=np.zeros((len(rows), *self.frame_shape), np.uint8), **columns)
        return Episode(frames=self.frames(rows), **columns)

    def __len__(self) -> int:
        return len(self.reward)

    def __repr__(self) -> str:
        name, size = self.spec.task or self.paths[0].name, f"{len(self.starts)} episodes, {len(self)} rows"
        return f"Episodes({name}: {size}, frames {self.frame_shape}, stack {self.stack})"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files behind the dataset, in the order of ``stored_rows``."""
        return tuple(self._store.paths)

    @property
    def file_rows(self) -> list[int]:
        """How many rows each of ``paths`` had when it was opened."""
        return self._store.file_rows

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted return of every episode, float64 (E,); nothing led to its first row."""
        return np.add.reduceat(np.where(self.step_type == FIRST, 0.0, self.reward.astype(np.float64)), self.starts)

    @property
    def has_frames(self) -> bool:
        """Whether there are pictures; D4RL's files, for example, hold states alone."""
        return self.frame_shape[1] > 0

    @property
    def observation_shape(self) -> tuple[int, int, int]:
        """Shape of a stacked observation, (3K, H, W)."""
        channels, height, width = self.frame_shape
        return (channels * self.stack, height, width)

    def subset(self, episodes: Sequence[int] | np.ndarray) -> Episodes:
        """A dataset of only these episodes, in this order, or those of a mask (E,); frames are shared, not copied.

        Raises:
            VOCError: none are asked for, or others than there are.
        """
        episodes = chosen(episodes, len(self.starts), "episode")
        if len(episodes) == 0:
            raise VOCError("A subset of zero episodes was asked for; at least one is needed.")
        rows = np.concatenate([np.arange(self.starts[e], self.ends[e]) for e in episodes])
        part = object.__new__(Episodes)
        part.__dict__.update(self.__dict__)
        part.source_rows, part.stored_rows = self.source_rows[rows], self.stored_rows[rows]
        part._set_columns({name: column[rows] for name, column in self._columns.items()})
        return part

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[Episodes, Episodes]:
        """Split by episode into ``1 - fraction`` and ``fraction``; both get at least one.

        Raises:
            VOCError: fewer than two episodes, a fraction that is no share, or no generator.
        """
        check_share(fraction, "fraction")
        if not isinstance(rng, np.random.Generator):
            raise VOCError(f"rng is {rng!r}; a np.random.Generator is needed, as np.random.default_rng(0).")
        count = len(self.starts)
        if count < 2:
            raise VOCError(f"{count} episode cannot be split; at least two are needed.")
        held_out = min(max(round(fraction * count), 1), count - 1)
        order = rng.permutation(count)
        return self.subset(np.sort(order[held_out:])), self.subset(np.sort(order[:held_out]))

    def load_frames(self) -> Episodes:
        """Decompress every frame of the opened files into memory, once for the dataset and all its subsets.

        A frame takes 3 x H x W bytes, those that a subset leaves out too. Returns itself.

        Raises:
            VOCError: no frames, more than the machine's memory, one that cannot be read, or a file that changed.
        """
        self.check_frames()
        self._store.load()
        return self

    def frames(self, rows: np.ndarray) -> np.ndarray:
        """Single frames, uint8 (..., 3, H, W), of ``rows`` of any shape or a mask (N,); each distinct one is read once.

        Raises:
            VOCError: a dataset without frames, rows that it has not, a frame that cannot be read, or a file that
                changed since it was opened.
        """
        self.check_frames()
        return self._store.read(self.stored_rows[chosen(rows, len(self), flat=False)])

    @property
    def in_memory(self) -> bool:
        """Whether every frame is held in memory (``load_frames``, and formats that are read whole)."""
        return self._store.in_memory

    @property
    def on_disk(self) -> bool:
        """Whether frames lie in files that give single ones, also where they have been loaded."""
        return self._store.on_disk

    @property
    def reads_slowly(self) -> bool:
        """Whether frames stay in files where reading one decompresses others with it, as in V-D4RL's own shards."""
        return self._store.reads_slowly

    def check_frames(self) -> None:
        """Refuse data without frames, with a word on where they could come from."""
        if not self.has_frames:
            raise VOCError(f"{self} has {self.without_frames}.")

    @property
    def without_frames(self) -> str:
        """For messages: what there is in the place of frames, and where frames could come from."""
        return without_frames(self.physics)

    def blocks(self) -> list[np.ndarray]:
        """All rows in their order, as many together as one read of frames takes."""
        return np.array_split(np.arange(len(self)), range(self._store.at_once, len(self), self._store.at_once))

    def observations(self, rows: np.ndarray) -> np.ndarray:
        """Stacked observations uint8 (B, 3K, H, W), oldest first; missing ones repeat the first.

        ``rows``: whole numbers (B,), -1 is the last, or a mask of all rows (N,); the same in ``windows``.

        Raises:
            VOCError: as ``frames``.
        """
        stacked = self.stacked_rows(rows)
        return self.frames(stacked).reshape(len(stacked), *self.observation_shape)

    def stacked_rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows whose frames make up the observations of ``rows``, int64 (B, K), oldest first."""
        rows = chosen(rows, len(self))
        first, back = self.starts[self.episode[rows]], np.arange(self.stack - 1, -1, -1)
        return np.maximum(rows[:, None] - back, first[:, None])

    def sample_rows(self, count: int, rng: np.random.Generator, min_steps: int = 1) -> np.ndarray:
        """``count`` rows, uniform over those that have at least ``min_steps`` steps left in their episode.

        Raises:
            VOCError: no row has that many steps left.
        """
        candidates = np.flatnonzero(self.steps_left >= min_steps)
        if len(candidates) == 0:
            raise VOCError(f"No row has {min_steps} step(s) left; the longest episode has {self.steps_left.max()}.")
        return candidates[rng.integers(len(candidates), size=count)]

    def windows(self, rows: np.ndarray, n: int) -> Window:
        """The next ``n`` steps from each of ``rows`` (fewer where the episode ends; see the mask)."""
        check_count(n, "n")
        rows = chosen(rows, len(self))
        steps = np.minimum(self.steps_left[rows], n)
        mask = np.arange(1, n + 1) <= steps[:, None]
        later = rows[:, None] + np.where(mask, np.arange(1, n + 1), 0)
        return Window(
            rows=rows,
            obs=self.observations(rows),
            action=np.where(mask[..., None], self.action[later], 0.0).astype(np.float32),
            reward=np.where(mask, self.reward[later], 0.0).astype(np.float32),
            discount=np.where(mask, self.discount[later], 0.0).astype(np.float32),
            next_obs=self.observations(rows + steps),
            mask=mask,
            steps=steps,
        )
