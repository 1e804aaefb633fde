"""`workbench new`: a pilot file from a few answers, checked against this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from workbench.wording.counts import number_of

commands = typer.Typer()
DECLARED = "none"
"""The answer that there is no trace."""
ASKED_GATES = {
    "memory_ratio": "memory: ternary is smaller at least so many times",
    "decode_speedup": "speed: a token comes at least so many times as fast",
    "quality_gap_bits_per_byte": "quality: bits per byte that ternary may be worse, at most",
}


@commands.command()
def new(
    pilot: Annotated[Path, typer.Argument(metavar="PILOT.yaml", help="the file to write")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET|FOLDER|hf:NAME", help="the model", show_default="asked; tiny-2m"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH|hf:NAME", help="the text", show_default="asked; python"),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|none",
            help="the log of requests; none declares a load",
            show_default="asked; none",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ROLE=NAME",
            help="what the trace calls time, prompt, output, class, ...; may be given again",
            show_default="asked where they are not known",
        ),
    ] = None,
    meter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="auto|none|FILE|READER:FIELDS",
            help="power meters, e.g. 'snmp: {host: 10.0.0.7, profile: apc}'; may be given again",
            show_default="asked; auto",
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="what computes", show_default="asked; auto"),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="that train together, one a GPU", show_default="asked; 1"),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=LIMIT",
            help="another limit for a usual gate, or a gate more: METRIC<=LIMIT, METRIC>=LIMIT; "
            "may be given again",
            show_default="asked; the usual limits",
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="what the pilot answers", show_default="asked")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="a further field of the file, e.g. train.steps=2000; may be given again",
            show_default="none",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="ask nothing: what is not given has its default")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the file")] = False,
) -> None:
    """Write a commented pilot, check it against this machine, say its time, disk and memory.

    Asks for what no option gives; without a terminal, or with --yes, it takes the defaults.
    """
    from workbench.errors import ConfigError
    from workbench.files import write_text
    from workbench.model.presets import PRESETS
    from workbench.pilot.draft import Answers, draft

    if pilot.exists() and not force:
        raise ConfigError(
            f"{pilot} is there already", next_step="give another name, or --force to replace it"
        )
    if not pilot.absolute().parent.is_dir():
        raise ConfigError(f"{pilot}: no such folder {pilot.parent}", next_step="make it first")
    presets = tuple(PRESETS)
    ask = _Asking(not yes and _somebody_answers(), pilot, presets)
    question = ask("question", question, "what shall the pilot answer", _QUESTION)
    answers = Answers(
        question=question,
        model=ask("model", model, f"model: {', '.join(presets)}; a folder; hf:NAME", "tiny-2m"),
        data=ask("data", data, "text: python, a file or folder, hf:NAME", "python"),
        fields=tuple(fields or ()),
    )
    answers = ask.load(answers, trace, column or ())
    answers = ask.meters(answers, meter)
    answers = ask.hardware(answers, device, processes)
    answers = ask.gates(answers, gate)
    write_text(pilot, draft(pilot, answers, presets))
    print(pilot)
    sys.stdout.flush()
    _check_and_forecast(pilot)


_QUESTION = "Would ternary weights carry our load on this machine?"


def _somebody_answers() -> bool:
    return sys.stdin.isatty()


class _Asking:
    """Asks for what was not given, again until the answer means something."""

    def __init__(self, interactive: bool, path: Path, presets: tuple[str, ...]) -> None:
        self.interactive, self.path, self.presets = interactive, path, presets

    def __call__(self, name: str, given: str | None, text: str, default: str) -> str:
        def check(answer: str) -> None:
            from workbench.pilot.draft import Answers, draft

            tried: dict[str, Any] = {"question": "?", name: answer}
            draft(self.path, Answers(**tried), self.presets)
            if name == "data":
                self._exists(answer, "python")

        return self._answer(given, text, default, check)

    def load(self, answers: Any, trace: str | None, columns: Any) -> Any:
        """With the trace and, where it is not understood as it is, its columns."""
        from dataclasses import replace

        from workbench.errors import ConfigError

        asked = f"log of requests, or {DECLARED} for a declared load"
        answer = self._answer(trace, asked, DECLARED, lambda text: self._exists(text, DECLARED))
        if answer == DECLARED:
            return answers
        answers = replace(answers, trace=answer, columns=_columns(columns))
        while self.interactive:
            try:
                self._read(answers)
                break
            except ConfigError as error:
                typer.echo(str(error), err=True)
            text = "what it calls time, prompt, output: time=..., prompt=..., output=..."
            said = typer.prompt(text, err=True)
            try:
                answers = replace(answers, columns=_columns(said.replace(",", " ").split()))
            except ConfigError as error:
                typer.echo(str(error), err=True)
        return answers

    def meters(self, answers: Any, given: list[str] | None) -> Any:
        from dataclasses import replace

        from workbench.pilot.draft import draft

        if given is None and self.interactive:
            said = self._answer(
                None,
                "power meters: auto, none, a power log, or READER: {...}",
                "auto",
                lambda text: draft(self.path, replace(answers, meters=(text,)), self.presets),
            )
            given = [said]
        return replace(answers, meters=tuple(given or ("auto",)))

    def hardware(self, answers: Any, device: str | None, processes: int | None) -> Any:
        from dataclasses import replace

        from workbench.errors import ConfigError
        from workbench.machine.device import choose_device
        from workbench.machine.gpu import visible_gpus

        def computes(text: str) -> None:
            if text not in ("auto", "cpu", "cuda"):
                raise ConfigError(f"device {text}", allowed="auto, cpu, cuda")
            choose_device(text)  # type: ignore[arg-type]

        device = self._answer(device, "what computes: auto, cpu, cuda", "auto", computes)
        gpus = len(visible_gpus()) if device != "cpu" else 0
        if processes is None and self.interactive and gpus > 1:
            processes = typer.prompt(
                f"GPUs that train together, of {gpus}", default=gpus, type=int, err=True
            )
        return replace(answers, device=device, processes=processes or 1)

    def gates(self, answers: Any, given: list[str] | None) -> Any:
        from dataclasses import replace

        from workbench.pilot.draft import usual_gates

        gates = list(given or ())
        if given is None and self.interactive:
            usual = {gate["metric"]: gate for gate in usual_gates()}
            for metric, text in ASKED_GATES.items():
                side = "at_most" if "at_most" in usual[metric] else "at_least"
                limit = float(usual[metric][side])
                said = typer.prompt(text, default=limit, type=float, err=True)
                gates += [f"{metric}={said:g}"] if said != limit else []
        return replace(answers, gates=tuple(gates))

    def _answer(
        self, given: str | None, text: str, default: str, check: Callable[[str], Any]
    ) -> str:
        from workbench.errors import ConfigError

        if given is not None or not self.interactive:
            answer = default if given is None else given
            check(answer)
            return answer
        while True:
            answer = typer.prompt(text, default=default, err=True)
            try:
                check(answer)
                return answer
            except ConfigError as error:
                typer.echo(str(error), err=True)

    def _exists(self, answer: str, *words: str) -> None:
        from workbench.errors import ConfigError

        if answer in words or answer.startswith("hf:") or Path(answer).expanduser().exists():
            return
        raise ConfigError(
            f"{answer}: no such file or folder",
            allowed=f"an existing path, or {words[0]}",
            next_step="paths are seen from here; the file keeps them as seen from its own folder",
        )

    def _read(self, answers: Any) -> None:
        from workbench.load.trace import read_trace
        from workbench.pilot.sections.profile_load import ProfileLoad

        section = ProfileLoad(trace=answers.trace, columns=dict(answers.columns))
        found = read_trace(answers.trace, section)
        typer.echo(f"{number_of(found.rows, 'line', form=',')}, {found.format}", err=True)


def _columns(texts: Any) -> tuple[tuple[str, str], ...]:
    from typing import get_args

    from workbench.errors import ConfigError
    from workbench.pilot.problems import did_you_mean
    from workbench.pilot.sections.profile_load import Role

    found = []
    for text in texts:
        role, equals, name = text.partition("=")
        if not equals or not name or role not in get_args(Role):
            raise ConfigError(
                f"column {text}: allowed ROLE=NAME{did_you_mean(role, get_args(Role))}"
            )
        found.append((role, name))
    return tuple(found)


def _check_and_forecast(pilot: Path) -> None:
    """On standard error; ConfigError for all that stands in the way of a start."""
    from workbench.errors import ConfigError
    from workbench.measure.meters.find import find_meters, reasons
    from workbench.pilot.resolve import resolve
    from workbench.runner.checks import check_pilot
    from workbench.runner.forecast import forecast

    resolved = resolve(pilot)
    check_pilot(resolved)
    foreseen = forecast(resolved.pilot)
    typer.echo(f"checked against this machine: {foreseen.device.text}", err=True)
    meters, missing = find_meters(resolved.pilot.measure_ab.meters)
    for one in meters:
        one.close()
    found = ", ".join(one.reader for one in meters)
    why = "; ".join(f"{source}: {reason}" for source, reason in reasons(missing).items())
    typer.echo(f"meters: {found or 'none, so no energy'}{f' ({why})' if why else ''}", err=True)
    for line in foreseen.lines():
        typer.echo(line, err=True)
    if problems := foreseen.problems():
        raise ConfigError(
            "\n".join(problems), next_step=f"change {pilot}; workbench show {pilot} checks it again"
        )
    typer.echo(f"start:  workbench run {pilot}", err=True)
