"""Compresses text for the page, which holds all of its data: `html/loader.js` restores it in the browser."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any


def deflate(content: bytes) -> str:
    """Compresses bytes as text: deflated, in base64."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def deflate_json(content: Any) -> str:
    """Compresses the compact JSON of a value as text; the same value gives the same text."""
    return deflate(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
