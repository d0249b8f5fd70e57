"""Named sizes: how large the networks are and how long they train."""

from __future__ import annotations

from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining
from voc_rl.training import NetworkSize, VOCConfig

# tiny: minutes on two CPU cores. small: 16 tokens and four times the network, for hours on a CPU or minutes on a GPU.
SIZES = {
    "tiny": VOCConfig(),
    "small": VOCConfig(
        quantizer_config={"n_tokens": 16, "components": 128, "hidden": 1024, "conv_width": 32},
        quantizer_training=LoopConfig(steps=5000, batch_size=256, learning_rate=1e-3),
        network=NetworkSize(n_layer=4, n_head=8, width=256, head_hidden=256),
        occupancy=OccupancyTraining(
            loop=LoopConfig(steps=20000, batch_size=256, learning_rate=1e-3, weight_decay=0.05)
        ),
    ),
}
