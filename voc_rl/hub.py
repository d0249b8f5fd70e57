"""Downloads of the paper's files, by name, for those with a network.

Nothing else in voc_rl downloads anything, but timm where the config of a dino says ``teacher_weights="download"``, and
the package d4rl where data are asked for by its own names (``d4rl:halfcheetah-medium-v2``).

voc_rl.hub.download("walker_vqvae")  ->  path for VQVAE.from_published
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from voc_rl.checkpoints import atomic_path
from voc_rl.errors import VOCError, check_choice

MODELS = "manantomar/video-occupancy-models"
DATASETS = "manantomar/video-occupancy-models-datasets"
BEIT = "https://github.com/addf400/files/releases/download/BEiT-v2/"
PATIENCE = 60  # seconds without a byte after which a server is given up


@dataclass(frozen=True)
class Published:
    """What a name stands for: a file of a Hugging Face repository, a folder of a data set there, or an address."""

    repository: str = ""
    file: str = ""
    folder: str = ""
    url: str = ""


FILES: dict[str, Published] = {
    # VQ-VAEs, fine-tuned on the frames of a task
    "walker_vqvae": Published(MODELS, file="walker_vq_vae_model.pth"),
    "cheetah_vqvae": Published(MODELS, file="cheetah_vq_vae_model.pth"),
    # BEiT-v2's VQ-KD tokenizer
    "dino": Published(url=BEIT + "vqkd_encoder_base_decoder_1x768x12_dino-663c55d7.pth"),
    # data sets with vae_latents or dino_latents
    "walker_vqvae_latents": Published(DATASETS, folder="walker_train/vq_latents"),
    "cheetah_vqvae_latents": Published(DATASETS, folder="cheetah_train/vq_latents"),
    "cheetah_dino_latents": Published(DATASETS, folder="cheetah_train/dino_latents"),
}


def download(name: str, folder: str | Path | None = None) -> Path:
    """Download a published file (or folder of files); returns where it lies. What is there already is kept.

    Args:
        name: a key of ``FILES``.
        folder: where to; None is Hugging Face's own cache, or ~/.cache/voc_rl.

    Raises:
        VOCError: an unknown name, or a download that failed.
        ImportError: huggingface_hub is not installed.
    """
    found = FILES[check_choice(name, FILES, "published file")]
    if found.url:
        return _from_address(found.url, Path(folder or os.path.expanduser("~/.cache/voc_rl")))
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("Downloads need huggingface_hub; `pip install huggingface_hub` installs it.") from error
    local = None if folder is None else os.fspath(folder)
    try:
        if found.file:
            return Path(huggingface_hub.hf_hub_download(found.repository, found.file, local_dir=local))
        whole = huggingface_hub.snapshot_download(
            found.repository, repo_type="dataset", allow_patterns=f"{found.folder}/*", local_dir=local
        )
    except Exception as error:  # the library raises many kinds, of networks, caches and repositories
        reason = str(error).strip().splitlines()
        raise VOCError(
            f"{name} could not be downloaded ({reason[0] if reason else type(error).__name__}); its place is "
            f"{found.repository}, and a file from there is read by the `from_published` of its class."
        ) from error
    # without a network the library returns what is there, which may be anything
    if not any((Path(whole) / found.folder).glob("*")):
        raise VOCError(f"{name} could not be downloaded, and {whole} has no {found.folder}; run again with a network.")
    return Path(whole) / found.folder


def _from_address(url: str, folder: Path) -> Path:
    path = folder / url.rsplit("/", 1)[-1]
    if path.exists():
        return path
    try:
        with (
            atomic_path(path) as temporary,
            urllib.request.urlopen(url, timeout=PATIENCE) as answer,
            open(temporary, "wb") as file,
        ):
            while block := answer.read(1 << 20):
                file.write(block)
            announced = answer.headers["Content-Length"]
            if announced is not None and file.tell() != int(announced):  # urllib takes a cut connection for the end
                raise VOCError(f"{url}: {file.tell()} of {announced} bytes came; download it again.")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise VOCError(f"{url} could not be downloaded ({error}).") from error
    return path
