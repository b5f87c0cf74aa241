"""The notebook as a page: its prose, and its code without what it printed."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "quickstart.ipynb"


def notebook_page() -> str:
    """Every cell in its order."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    texts = (("".join(cell["source"]), cell["cell_type"]) for cell in cells)
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for text, kind in texts) + "\n"
