"""Optional files beside the checkout; tests that need them skip without them."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("CHESTX_SHARED", Path(__file__).parents[3] / "shared"))
