"""`workbench new`: a pilot file from a few answers, checked against this machine.

The file stays only if the workbench would start it. A refusal leaves what was there before, and
names the options that the fields at fault were given by.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workbench.paths import BASE, SHIPPED, shipped_names
from workbench.wording.counts import number_of

if TYPE_CHECKING:
    from workbench.pilot.draft import Answers
    from workbench.pilot.sections.profile_load import ProfileLoad

commands = typer.Typer()
DECLARED = "none"
"""The answer that there is no trace."""
ROLES = {
    "time": "time of the request",
    "prompt": "tokens of the prompt",
    "output": "tokens of the output",
}
"""Of a log's columns, those that it needs."""
ASKED_GATES = {
    "memory_ratio": "memory: ternary is smaller at least so many times",
    "decode_speedup": "speed: a token comes at least so many times as fast",
    "quality_gap_bits_per_byte": "quality: bits per byte that ternary may be worse, at most",
}


_EXTENDED = [name for name in shipped_names() if not name.startswith("study_")]


def pilots_named(typed: str) -> list[str]:
    """Completions of a shipped pilot's name."""
    return [name for name in map(SHIPPED.__add__, _EXTENDED) if name.startswith(typed)]


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
    extends: Annotated[
        str,
        typer.Option(
            metavar="workbench:NAME|PATH",
            help=f"pilot to start from, smoke is small: {', '.join(_EXTENDED)}",
            autocompletion=pilots_named,
        ),
    ] = BASE,
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
    from workbench.pilot.draft import Answers

    if pilot.exists() and not force:
        raise ConfigError(
            f"{pilot} is there already", next_step="give another name, or --force to replace it"
        )
    if not pilot.absolute().parent.is_dir():
        raise ConfigError(f"{pilot}: no such folder {pilot.parent}", next_step="make it first")
    answers = Answers(_QUESTION, fields=tuple(fields or ()), extends=extends)
    if extends != BASE:
        answers = replace(answers, given=frozenset({"extends"}))
    ask = _Asking(not yes and _somebody_answers(), pilot, answers)
    ask.text("question", question, "what shall the pilot answer", _QUESTION)
    ask.model(model)
    ask.data(data)
    ask.load(trace, column or ())
    ask.meters(meter)
    ask.hardware(device, processes)
    ask.gates(gate)
    _write_checked(pilot, ask)


_QUESTION = "Would ternary weights carry our load on this machine?"


def _somebody_answers() -> bool:
    return sys.stdin.isatty()


class _Asking:
    """Asks for what was not given, again until the answer means something.

    What a --set decides is not asked. Where another pilot than the base is extended, Enter leaves
    what that says.
    """

    def __init__(self, interactive: bool, path: Path, answers: Answers) -> None:
        from workbench.model.presets import PRESETS
        from workbench.pilot.draft import draft, fields_of

        self.interactive, self.path, self.presets = interactive, path, tuple(PRESETS)
        draft(path, answers, self.presets)  # refuses what is wrong in --set and --extends
        self.said = fields_of(path, answers.fields)
        self.answers = replace(answers, extends=self.said.get("extends", answers.extends))

    def text(
        self,
        name: str,
        given: str | None,
        asked: str,
        default: str,
        check: Callable[[str], Any] = lambda answer: None,
        kept: Callable[[str], Any] = lambda answer: answer,
    ) -> None:
        """Keep one answer. check: raises ConfigError for one that means nothing. kept: what is
        kept of it."""
        from workbench.errors import ConfigError

        def keep(answer: str) -> None:
            check(answer)
            self.keep(name, kept(answer))

        if given is not None:
            keep(given)
        if given is not None or not self.asks(name):
            return
        if self.answers.extends != BASE and name != "question":
            default = self._there
        while (answer := typer.prompt(asked, default=default, err=True)) != self._there:
            try:
                return keep(answer)
            except ConfigError as error:
                typer.echo(str(error), err=True)

    @property
    def _there(self) -> str:
        """The answer that leaves a field as the extended pilot has it."""
        return f"as in {self.answers.extends}"

    def asks(self, name: str) -> bool:
        from workbench.pilot.draft import decided

        return self.interactive and not decided(name, self.answers.fields)

    def keep(self, name: str, value: Any) -> None:
        """Raises ConfigError where the pilot cannot say it."""
        from workbench.pilot.draft import draft

        given = self.answers.given | {name}
        tried = replace(self.answers, **{name: value, "given": given})
        draft(self.path, tried, self.presets)
        self.answers = tried

    def model(self, given: str | None) -> None:
        def check(answer: str) -> None:
            if answer not in self.presets and Path(answer).expanduser().exists():
                from workbench.model.checkpoint import checkpoint_config
                from workbench.train.quiet import quiet_transformers

                with quiet_transformers():
                    checkpoint_config(str(Path(answer).expanduser()))

        asked = f"model: {', '.join(self.presets)}; a folder; hf:NAME"
        self.text("model", given, asked, "tiny-2m", check)

    def data(self, given: str | None) -> None:
        asked = "text: python, a file or folder, hf:NAME"
        self.text("data", given, asked, "python", self._is_text)

    def _is_text(self, answer: str) -> None:
        from pydantic import ValidationError

        from workbench.data.corpus import require_documents
        from workbench.pilot.sections.data import Data

        self._exists(answer, "python")
        corpus = answer if answer == "python" else str(Path(answer).expanduser())
        try:
            section = Data(**{**self.said.get("data", {}), "corpus": corpus})
        except (TypeError, ValidationError):
            return  # said with its line when the whole pilot is checked
        if not answer.startswith("hf:"):
            require_documents(section)

    def load(self, trace: str | None, columns: Sequence[str]) -> None:
        """The trace and, where it is not understood as it is, its columns."""
        from workbench.errors import ConfigError
        from workbench.load.formats import NEEDED

        self._log(trace)
        if columns:
            self.keep("columns", _columns(columns))
        while self.interactive and "trace" in self.answers.given and self.answers.trace:
            try:
                return self._read()
            except ConfigError as error:
                typer.echo(str(error), err=True)
            names = self._field_names()
            found: dict[str, str] = {}
            for role in NEEDED if names else ():
                free = [name for name in names if name not in found.values()]
                if (name := self._column(role, free)) == DECLARED:
                    break
                found[role] = name
            if len(found) == len(NEEDED):
                self.keep("columns", tuple(found.items()))
            else:
                given = self.answers.given - {"trace", "columns"}
                self.answers = replace(self.answers, trace=None, columns=(), given=given)
                self._log(None)

    def _log(self, given: str | None) -> None:
        self.text(
            "trace",
            given,
            f"log of requests, or {DECLARED} for a declared load",
            DECLARED,
            lambda answer: self._exists(answer, DECLARED),
            lambda answer: None if answer == DECLARED else answer,
        )

    def _column(self, role: str, free: list[str]) -> str:
        from workbench.pilot.problems import did_you_mean

        asked = f"column of the {ROLES[role]}: {', '.join(free)}; {DECLARED} for another log"
        while (name := typer.prompt(asked, default=DECLARED, err=True)) not in (*free, DECLARED):
            typer.echo(f"{name}: no column{did_you_mean(name, free)}", err=True)
        return name

    def _field_names(self) -> list[str]:
        from workbench.errors import ConfigError
        from workbench.load.formats import field_names

        section = self._section()
        try:
            return field_names(Path(str(section.trace)), section) if section else []
        except ConfigError:  # said by the reading before
            return []

    def _section(self) -> ProfileLoad | None:
        """None where a --set is wrong, which is said when the whole pilot is checked."""
        from pydantic import ValidationError

        from workbench.pilot.sections.profile_load import ProfileLoad

        own: dict[str, Any] = {"trace": str(Path(self.answers.trace or "").expanduser())}
        if self.answers.columns:
            own["columns"] = dict(self.answers.columns)
        try:
            return ProfileLoad(**{**self.said.get("profile_load", {}), **own})
        except (TypeError, ValidationError):
            return None

    def _read(self) -> None:
        from workbench.load.kept import profile_of_trace
        from workbench.load.trace import read_trace

        section = self._section()
        if section is None:
            return
        if Path(str(section.trace)).is_dir():  # windows of ServeGen
            profile_of_trace(section, 0)
            return
        found = read_trace(str(section.trace), section)
        typer.echo(f"{number_of(found.rows, 'line', form=',')}, {found.format}", err=True)

    def meters(self, given: list[str] | None) -> None:
        if given:
            self.keep("meters", tuple(given))
            return
        asked = "power meters: auto, none, a power log, or READER: {...}"
        self.text("meters", None, asked, "auto", kept=lambda answer: (answer,))

    def hardware(self, device: str | None, processes: int | None) -> None:
        from workbench.errors import ConfigError
        from workbench.machine.device import choose_device
        from workbench.machine.gpu import visible_gpus

        def computes(text: str) -> None:
            if text not in ("auto", "cpu", "cuda"):
                raise ConfigError(f"device {text}", allowed="auto, cpu, cuda")
            choose_device(text)  # type: ignore[arg-type]

        self.text("device", device, "what computes: auto, cpu, cuda", "auto", computes)
        gpus = len(visible_gpus()) if self.answers.device != "cpu" else 0
        if processes is None and gpus > 1 and self.asks("processes"):
            processes = typer.prompt(
                f"GPUs that train together, of {gpus}", default=gpus, type=int, err=True
            )
        if processes is not None:
            self.keep("processes", processes)

    def gates(self, given: list[str] | None) -> None:
        from workbench.pilot.draft import usual_gates

        gates = list(given or ())
        if given is None and self.asks("gates"):
            usual = {gate["metric"]: gate for gate in usual_gates(self.answers.extends)}
            for metric in [name for name in ASKED_GATES if name in usual]:
                side = "at_most" if "at_most" in usual[metric] else "at_least"
                limit = float(usual[metric][side])
                said = typer.prompt(ASKED_GATES[metric], default=limit, type=float, err=True)
                gates += [f"{metric}={said:g}"] if said != limit else []
        if gates:
            self.keep("gates", tuple(gates))

    def _exists(self, answer: str, *words: str) -> None:
        from workbench.errors import ConfigError

        if answer in words or answer.startswith("hf:") or Path(answer).expanduser().exists():
            return
        raise ConfigError(
            f"{answer}: no such file or folder",
            allowed=f"an existing path, or {words[0]}",
            next_step="paths are seen from here; the file keeps them as seen from its own folder",
        )


def _columns(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    from typing import get_args

    from workbench.errors import ConfigError
    from workbench.pilot.problems import did_you_mean
    from workbench.pilot.sections.profile_load import Role

    found = []
    for text in texts:
        role, equals, name = text.partition("=")
        if not equals or not name or role not in get_args(Role):
            raise ConfigError(
                f"--column {text}: allowed ROLE=NAME{did_you_mean(role, get_args(Role))}"
            )
        found.append((role, name))
    return tuple(found)


def _write_checked(pilot: Path, ask: _Asking) -> None:
    """The file, if it can be started; else what was there before, and the ConfigError that says
    what to give otherwise."""
    from workbench.errors import ConfigError
    from workbench.files import write_text
    from workbench.pilot.draft import as_options, draft, in_options

    before = pilot.read_bytes() if pilot.exists() else None
    write_text(pilot, draft(pilot, ask.answers, ask.presets))
    try:
        _check_and_forecast(pilot)
    except BaseException as error:
        if before is None:
            pilot.unlink()
        else:
            pilot.write_bytes(before)
        if not isinstance(error, ConfigError):
            raise
        got, allowed, cure = (
            in_options(text, pilot, ask.answers)
            for text in (error.got, error.allowed, error.next_step)
        )
        again = f"; {pilot} was not written" if before is None else f"; {pilot} is as it was"
        if ask.interactive:
            given = shlex.join(["workbench", "new", str(pilot), *as_options(ask.answers)])
            again += f"; the answers as a command, to be corrected:\n           {given} --yes"
        raise ConfigError(got, allowed=allowed, next_step=cure + again) from None
    print(pilot)
    sys.stdout.flush()
    typer.echo(f"start:  workbench run {pilot}", err=True)


def _check_and_forecast(pilot: Path) -> None:
    """On standard error; ConfigError for all that stands in the way of a start."""
    from workbench.errors import ConfigError
    from workbench.measure.meters.find import find_meters, reasons
    from workbench.pilot.resolve import resolve
    from workbench.runner.checks import check_pilot
    from workbench.runner.forecast import forecast
    from workbench.runner.text_ahead import text_ahead

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
    for text in text_ahead(resolved.pilot):
        typer.echo(f"text:   {text}", err=True)
    if problems := foreseen.problems():
        raise ConfigError("\n".join(problems), next_step="change what the above names")
