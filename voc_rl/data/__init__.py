"""Episodes on disk, read back as frames, stacked observations and windows."""

from voc_rl.data.d4rl import normalized_scores
from voc_rl.data.episodes import Episodes
from voc_rl.data.hdf5 import Episode, write_episode
from voc_rl.data.latents import read_latents, stack_latents, write_latents
from voc_rl.data.minari_data import write_minari
from voc_rl.data.registry import load_dataset
from voc_rl.data.spec import DataSpec
from voc_rl.data.transitions import arrived_rows, going_rows, taken_actions
from voc_rl.data.vd4rl import write_vd4rl
from voc_rl.data.window import Window

__all__ = [
    "DataSpec",
    "Episode",
    "Episodes",
    "Window",
    "arrived_rows",
    "going_rows",
    "load_dataset",
    "normalized_scores",
    "read_latents",
    "stack_latents",
    "taken_actions",
    "write_episode",
    "write_latents",
    "write_minari",
    "write_vd4rl",
]
