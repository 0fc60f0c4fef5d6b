"""The example notebook: `python -m tools.notebook` runs it in an empty folder and stores its outputs."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
# Long enough for a busy machine.
LIMIT_S = 600


def executed(folder: Path) -> Any:
    """Return the notebook as run in a folder, without the times and the versions of this run."""
    # Imported by name, since these packages have no type annotations.
    nbclient, nbformat = (importlib.import_module(name) for name in ("nbclient", "nbformat"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=LIMIT_S, kernel_name="python3", resources=resources).execute()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def main() -> None:
    """Run the notebook and replace its outputs."""
    nbformat = importlib.import_module("nbformat")
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
