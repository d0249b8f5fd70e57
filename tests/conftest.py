"""Set-up shared by all tests: one thread, so that numbers repeat and the tests do not fight for cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
