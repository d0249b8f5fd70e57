"""Frames to codes and back: one interface, several quantizers, chosen by name."""

from voc_rl.quantizers.base import Quantizer, check_features, code_counts, codebook_use, perplexity
from voc_rl.quantizers.dino import DINOTokenizer
from voc_rl.quantizers.dino_config import DINOConfig
from voc_rl.quantizers.musik import MUSIK, MUSIKConfig
from voc_rl.quantizers.registry import QUANTIZERS, build_quantizer, load_quantizer, save_quantizer
from voc_rl.quantizers.training import seen_as_stored, tokenize, train_quantizer
from voc_rl.quantizers.vqgan import VQGAN
from voc_rl.quantizers.vqgan_network import VQGANConfig
from voc_rl.quantizers.vqvae import VQVAE, VQVAEConfig

__all__ = [
    "MUSIK",
    "QUANTIZERS",
    "VQGAN",
    "VQVAE",
    "DINOConfig",
    "DINOTokenizer",
    "MUSIKConfig",
    "Quantizer",
    "VQGANConfig",
    "VQVAEConfig",
    "build_quantizer",
    "check_features",
    "code_counts",
    "codebook_use",
    "load_quantizer",
    "perplexity",
    "save_quantizer",
    "seen_as_stored",
    "tokenize",
    "train_quantizer",
]
