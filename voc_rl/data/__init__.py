"""Episodes on disk, read back as frames, stacked observations and windows."""

from voc_rl.data.episodes import Episodes, Window
from voc_rl.data.hdf5 import DataSpec, Episode, write_episode

__all__ = ["DataSpec", "Episode", "Episodes", "Window", "write_episode"]
