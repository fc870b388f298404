"""Files of the views of a page: a page loads each view when it is first shown."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from service.report.publish import VIEWS

START = "deliver("  # the call of a function of `page.js`
END = ");\n"


def add_view_file(directory: Path, name: str, html: str) -> dict[str, str]:
    """Writes the markup of a view as a script, the only kind of file that a page on a disk can load.

    Args:
        directory: Directory of the page.
        name: Name of the view.
        html: Its markup, which `page.js` puts in the page.

    Returns:
        Entry for the manifest: the file, whose name contains a digest of its content, and its SHA-256.
    """
    script = f"{START}{json.dumps(f'view-{name}')},{json.dumps(html, ensure_ascii=False)}{END}"
    digest = hashlib.sha256(script.encode()).hexdigest()
    file = f"{VIEWS}/{name}-{digest[:12]}.js"
    (directory / VIEWS).mkdir(exist_ok=True)
    (directory / file).write_text(script, encoding="utf-8")
    return {"file": file, "sha256": digest}


def is_view_file(name: str, content: bytes) -> bool:
    """Tells whether a file is one that `add_view_file` writes: two strings, and no other code.

    Args:
        name: Name of the file, which ends in `-DIGEST.js`.
        content: Content of the file.
    """
    if not name.endswith(f"-{hashlib.sha256(content).hexdigest()[:12]}.js"):
        return False
    try:
        script = content.decode()
        values = json.loads(f"[{script.removeprefix(START).removesuffix(END)}]")
    except (ValueError, RecursionError):
        return False
    is_call = script.startswith(START) and script.endswith(END)
    return is_call and len(values) == 2 and all(isinstance(value, str) for value in values)
