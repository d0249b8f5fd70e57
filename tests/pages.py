"""The README and other pages, and the code that they show."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks(*languages: str, page: Path = README) -> list[str]:
    """Fenced blocks of a page in these languages, in order."""
    text = page.read_text() if page.exists() else ""
    fenced = re.findall(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, name, code in fenced if name in languages]
