"""Downloads by name: what is asked for, where it goes, and that nothing happens by itself. No network is used."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from worlds import one_sentence, refusal

from voc_rl import hub
from voc_rl.errors import VOCError


def test_files_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *args, **options: asked.append((args, options)) or "/cache/file.pth"
    )
    assert hub.download("walker_vqvae") == Path("/cache/file.pth")
    hub.download("cheetah_vqvae", tmp_path)
    assert asked == [
        (("manantomar/video-occupancy-models", "walker_vq_vae_model.pth"), {"local_dir": None}),
        (("manantomar/video-occupancy-models", "cheetah_vq_vae_model.pth"), {"local_dir": str(tmp_path)}),
    ]


def test_folders_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **options: asked.append((args, options)) or str(tmp_path)
    )
    (tmp_path / "other.pth").write_bytes(b"")
    with pytest.raises(VOCError, match="has no walker_train/vq_latents; run again with a network"):
        hub.download("walker_vqvae_latents")  # without one the library returns what is there
    asked.clear()
    (tmp_path / "walker_train" / "vq_latents").mkdir(parents=True)
    (tmp_path / "walker_train" / "vq_latents" / "0.hdf5").write_bytes(b"")
    assert hub.download("walker_vqvae_latents") == tmp_path / "walker_train" / "vq_latents"
    assert asked[0][0] == ("manantomar/video-occupancy-models-datasets",)
    assert asked[0][1]["repo_type"] == "dataset"
    assert asked[0][1]["allow_patterns"] == "walker_train/vq_latents/*"


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that knows one file."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path in ("/there.pth", "/cut.pth") else 404)
            if self.path == "/cut.pth":
                self.send_header("Content-Length", "1000000")
            self.end_headers()
            if self.path == "/cut.pth":
                self.wfile.write(b"weights")
            if self.path == "/there.pth":
                self.wfile.write(b"weights" * 1000)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}", asked
        found.shutdown()


def test_addresses_are_kept_once_downloaded(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = server
    monkeypatch.setitem(hub.FILES, "dino", hub.Published(url=f"{address}/there.pth"))
    for _ in range(2):
        path = hub.download("dino", tmp_path / "models")
        assert path == tmp_path / "models/there.pth"
        assert path.read_bytes() == b"weights" * 1000
    assert asked == ["/there.pth"]


def test_failures_are_one_sentence_and_leave_nothing(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.setitem(hub.FILES, "dino", hub.Published(url=f"{server[0]}/missing.pth"))
    monkeypatch.setitem(hub.FILES, "vqgan", hub.Published(url=f"{server[0]}/cut.pth"))
    for name, words in (
        ("dino", "404"), ("vqgan", "7 of 1000000 bytes came"), ("walker_vqvae", "(no route to host)"),
        ("beit", "Unknown published file 'beit'"),
    ):  # fmt: skip
        with pytest.raises(VOCError) as caught:
            hub.download(name, tmp_path)
        assert words in str(caught.value)
        assert one_sentence(str(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/slow.pth"
        monkeypatch.setitem(hub.FILES, "dino", hub.Published(url=address))
        assert "slow.pth could not be downloaded (timed out)." in refusal(hub.download, "dino", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_else_downloads() -> None:
    """No other module imports this one, and importing it imports no library that could."""
    root = Path(hub.__file__).parent
    users = [path for path in root.rglob("*.py") if path.name != "hub.py" and "voc_rl.hub" in path.read_text()]
    assert users == []
    code = "import sys, voc_rl.hub; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
