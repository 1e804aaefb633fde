"""One notebook through papermill, and nothing believed of what it says.

papermill starts the kernel in the caller's folder, so ``cwd`` is passed. A killed kernel
leaves a notebook that looks complete; the caller judges by the stage's record. What went
wrong is returned as text, to be shown only if the record is missing.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from workbench.paths import NOTEBOOKS
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.run import Run


def execute_notebook(notebook: str, target: Path, resolved: ResolvedPilot, run: Run) -> str | None:
    """Execute ``notebook`` into ``target``; None, or one line about what went wrong."""
    parameters = {
        "pilot": str(resolved.path),
        "overrides": list(resolved.overrides),
        "run_folder": str(run.folder),
    }
    return execute_with(notebook, target, parameters)


def execute_with(notebook: str, target: Path, parameters: dict[str, object]) -> str | None:
    """Execute ``notebook`` with ``parameters`` in the notebooks' own folder."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial.ipynb")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            papermill.execute_notebook(
                str(NOTEBOOKS / notebook),
                str(partial),
                parameters=parameters,
                cwd=str(NOTEBOOKS),
                kernel_name="python3",
                extra_arguments=["--log-level=CRITICAL"],  # to the kernel: no start-up advice
                progress_bar=False,
                log_output=False,
                # Everything is on disk and every tracker's run was ended by then: what is left is
                # a second and a half of taking modules apart.
                shutdown_kernel="immediate",
            )
    except DeadKernelError:
        return "the kernel died"
    except papermill.PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    partial.replace(target)
    return None
