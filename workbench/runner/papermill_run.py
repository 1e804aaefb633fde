"""One notebook through papermill, and nothing believed of what it says.

papermill starts the kernel in the caller's folder, so ``cwd`` is passed; it takes paths for
format strings, so braces are doubled. A killed kernel leaves a notebook that looks complete; the
caller judges by the stage's record. What went wrong is returned, to be shown if the record is
missing.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import reason_of
from workbench.paths import NOTEBOOKS
from workbench.pilot.resolve import ResolvedPilot
from workbench.records.run import Run

START_TIMEOUT_S = 300
"""For the interpreter to answer: long, because a busy machine is no fault of the notebook."""
GOES_ON = "the same command goes on from here"
WITHOUT = "or leave the notebooks out: workbench run --no-notebooks PILOT.yaml"


@dataclass(frozen=True)
class Problem:
    """Why a notebook did not come to its end. what: the fact, with the interpreter where it was
    the kernel's; cure: what to do next."""

    what: str
    cure: str


def execute_notebook(
    notebook: str, target: Path, resolved: ResolvedPilot, run: Run
) -> Problem | None:
    """Execute a stage's ``notebook`` into ``target``; None if it came to its end."""
    parameters = {
        "pilot": str(resolved.path),
        "overrides": list(resolved.overrides),
        "run_folder": str(run.folder),
    }
    return execute_with(NOTEBOOKS / notebook, target, parameters)


def execute_with(notebook: Path, target: Path, parameters: dict[str, object]) -> Problem | None:
    """Execute ``notebook`` with ``parameters`` in its own folder; None if it came to its end."""
    try:
        import papermill
        from nbclient.exceptions import DeadKernelError

        from workbench.runner.kernel import death_of, own_kernel
    except ImportError as error:
        return Problem(
            f"{sys.executable} cannot execute notebooks: {error}",
            f"install the extra notebooks for that interpreter, {WITHOUT}",
        )
    partial = target.with_name(f".{target.name}.partial.ipynb")
    with own_kernel() as kernel, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            papermill.execute_notebook(
                _literal(notebook),
                _literal(partial),
                parameters=parameters,
                cwd=str(notebook.parent),
                kernel_name="python3",  # the language of the parameters; the kernel is our own
                kernel_manager_class=kernel,
                start_timeout=START_TIMEOUT_S,
                extra_arguments=["--log-level=CRITICAL"],  # to the kernel: no start-up advice
                progress_bar=False,
                log_output=False,
                # Everything is on disk and every tracker's run was ended by then: what is left is
                # a second and a half of taking modules apart.
                shutdown_kernel="immediate",
            )
        except papermill.PapermillExecutionError as error:
            return Problem(f"{error.ename}: {error.evalue}", GOES_ON)
        except DeadKernelError:
            return Problem(death_of(kernel), _after_death(kernel.ended_with))
        except OSError as error:
            return Problem(
                f"the kernel of {sys.executable}, or its notebook {partial}: {reason_of(error)}",
                f"see to that, {WITHOUT}",
            )
        except (
            Exception
        ) as error:  # of papermill, nbclient, jupyter_client: none may be a traceback
            why = death_of(kernel) if kernel.ended_with is not None else reason_of(error)
            return Problem(
                f"the kernel of {sys.executable} did not start: {why}",
                f"see whether `{sys.executable} -m ipykernel --version` answers, {WITHOUT}",
            )
        partial.replace(target)
    return None


def _literal(path: Path) -> str:
    """A path for papermill, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _after_death(code: int | None) -> str:
    if code in (-9, 137):
        return (
            "often the memory was full: close programs or choose a smaller preset; "
            "the same command goes on from the last checkpoint"
        )
    return f"{GOES_ON}; where it dies again: {WITHOUT.removeprefix('or ')}"
