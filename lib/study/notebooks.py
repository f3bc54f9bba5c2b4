"""Runs a notebook of the study headlessly: `python -m lib.study.notebooks SOURCE OUTPUT PROFILE [NAME=VALUE ...]`.

One progress bar for the notebook, none in what it prints. The output is freed of all that differs between two runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import papermill
import tqdm.auto  # noqa: F401, read before TQDM_DISABLE is set
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbstripout import strip_output

from lib.files import write_atomically

VOLATILE = [
    "metadata.papermill",
    "cell.metadata.papermill",
    "cell.metadata.execution",
    "metadata.language_info.version",
]


def run_notebook(source: Path, output: Path, profile: str, **parameters: str) -> None:
    """Write the executed notebook when it is complete. Raises PapermillExecutionError, with the error of a cell."""
    if profile != "reference":  # the notebooks' own say reference
        parameters["profile"] = profile
    os.environ["TQDM_DISABLE"] = "1"  # in the kernel

    def write(temporary: Path) -> None:
        notebook = papermill.execute_notebook(
            source, temporary, parameters, kernel_name="python3", cwd=source.parent, progress_bar=True
        )
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
        strip_output(notebook, keep_output=True, keep_count=True, keep_id=True, extra_keys=VOLATILE)
        nbformat.write(notebook, temporary)

    write_atomically(output, write)


if __name__ == "__main__":
    run_notebook(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], **dict(pair.split("=", 1) for pair in sys.argv[4:]))
