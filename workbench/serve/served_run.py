"""``workbench serve``: a run, or model folders, behind one address until it is told to stop.

A run is served by its pilot's rule, weight and hold, and its route is kept in the run's folder
(:mod:`.kept_route`), a rollback included; that of other arms in the file that they are given.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench.errors import ConfigError, StageError, reason_of
from workbench.machine.cpu import measurement_threads
from workbench.paths import shown
from workbench.pilot.sections.readiness import Packing
from workbench.serve.canary import CanaryPlan
from workbench.serve.front_options import DEFAULT_FRONT, FrontOptions
from workbench.serve.kept_route import (
    TOKEN_HEADER,
    KeptRoute,
    known_arms,
    route_file,
    route_token,
)
from workbench.serve.main import serve
from workbench.serve.rollback_rule import RollbackRule
from workbench.serve.spec import ProbePrompt, Ready, ServeSpec, fair_slots
from workbench.serve.upstream_options import UpstreamOptions, upstreams_of
from workbench.wording.counts import number_of

SLOTS, UPSTREAM_SLOTS = 4, 256
SPECULATIVE = "speculative"
"""The arm of ``--draft``."""
PROBES, PROBE_CHARACTERS = 32, 400
log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from workbench.records.run import Run
    from workbench.serve.routed import Switch


def serve_run(
    folders: Sequence[Path | str],
    *,
    slots: int | None = None,
    short_slots: int | None = None,
    route: str | None = None,
    weight: float | None = None,
    rule: str | None = None,
    canary: CanaryPlan | None = None,
    probes: Path | None = None,
    upstream_options: UpstreamOptions | None = None,
    front: FrontOptions = DEFAULT_FRONT,
    meters: bool = True,
    state: Path | None = None,
    on_lost_stream: Literal["end", "continue"] | None = None,
    deadline_s: float | None = None,
    draft: str | None = None,
    packing: Mapping[str, str] | None = None,
    **of_spec: Any,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    A run is served by its pilot's rollback rule, weight and hold, and goes on with the route that
    it had when it was served last.

    folders: one run, by its folder or its name (its full-precision model is the fallback, its
        hybrid the route), or model folders, packed or Hugging Face, or ``NAME=URL`` of servers that
        run: the first is the fallback, the last the route.
    slots: None takes 4, and 256 of upstreams, which have queues of their own. short_slots: None
        takes a fair share of them, none of upstreams.
    rule: when to go back, instead of the pilot's: fields of :class:`RollbackRule` as
        ``ttft_s=0.5,max_error_share=0.05``.
    canary: how the route's share grows, instead of the pilot's; it begins with its first step, or
        goes on from the share that the run's route had when it was served last.
    probes: prompts for a canary, a text a line, or a ``.jsonl`` file as a pilot's ``prompts`` takes
        it; None takes those of the run's pilot, and where that has none its held-out texts.
    upstream_options: of arms that are other servers.
    front: how it meets its clients. meters: whether it counts energy: by the pilot's meters of a
        run, else by the counters of this machine.
    state: the file that the route is kept in; None takes one of the run's folder, and none of other
        arms, whose server then starts anew each time.
    on_lost_stream, deadline_s: None takes the pilot's.
    draft: a model folder with the fallback's tokenizer, or ``prompt``: an arm ``speculative`` more,
        the fallback's answers drafted by it, or by the text itself where that promises more.
    packing: fields of :class:`Packing` instead of the pilot's.
    of_spec: further fields of :class:`ServeSpec`, as they are.
    Raises ConfigError or StageError with what is wrong; nothing is served then.
    """
    measurement_threads(of_spec.get("threads", 0), "--threads")
    front.check()
    upstreams = upstreams_of(folders, upstream_options)
    arms = {} if upstreams else arms_of(folders)
    drafts: dict[str, Path | None] = {}
    if draft is not None:
        arms, drafts = _with_draft(arms, draft)
    names = list(arms or upstreams)
    run = None if upstreams else _served_run(folders)
    kept_in = _kept_in(state, run)
    kept = KeptRoute.of(kept_in) if kept_in else None
    if kept and run is None and set(known_arms(kept)) != set(names):
        raise ConfigError(
            f"--state {shown(Path(kept_in or ''))} is of {', '.join(known_arms(kept))}",
            allowed=f"a file of its own for {', '.join(names)}",
        )
    if route is not None and route not in names:
        raise ConfigError(f"--route {route}", allowed=", ".join(names))
    if upstreams and on_lost_stream == "continue":
        raise ConfigError(
            "--on-lost-stream continue in front of upstreams",
            allowed="end: their tokens are not known here, so no other arm can go on from them",
        )
    evidence: dict[str, Any] | None = None
    if route is None and weight is None and kept and kept.arm in names:
        route, weight, reason = kept.arm, kept.weight, kept.reason
        evidence = kept.evidence
    else:
        route, reason = route or names[-1], "at the start"
    given_probes = _given_probes(probes) if probes else ()
    pilot_s = _of_pilot(run)
    judged = {**pilot_s, **({} if rule is None else {"rule": rule_of(rule)})}
    planned, usual_weight = judged.pop("canary", None), judged.pop("weight", 1.0)
    if on_lost_stream is not None:
        judged["on_lost_stream"] = on_lost_stream
    if deadline_s is not None:
        judged["deadline_s"] = deadline_s
    if packing:
        judged["packing"] = judged.get("packing", Packing()).model_copy(update=dict(packing))
    plan = canary or planned
    if plan:
        judged["rule"] = judged.get("rule") or RollbackRule()
        if weight is None and route != names[0]:
            weight = plan.steps[0]
    slots = slots or (UPSTREAM_SLOTS if upstreams else SLOTS)
    if short_slots is None:
        short_slots = 0 if upstreams else fair_slots(slots)
    spec = ServeSpec(
        arms,
        fallback=names[0],
        route=route,
        weight=1.0 if route == names[0] else usual_weight if weight is None else weight,
        held_s=kept.held_s if kept else 0.0,
        evidence=evidence,
        canary=plan if len(names) > 1 else None,
        slots=slots,
        short_slots=short_slots,
        upstreams=upstreams,
        front=front,
        meters=_meters(run) if meters else None,
        probes=_probes(run) if plan and not given_probes else given_probes,
        drafts=drafts,
        **judged,
        **of_spec,
    )
    token = route_token() or secrets.token_urlsafe()

    held_until, known = [kept.held_until if kept else 0.0], [evidence]

    def keep(address: str, arm: str, weight: float, reason: str) -> KeptRoute:
        now = KeptRoute(
            arm, weight, reason, spec.fallback, address, token,
            certificate=spec.front.certificate, held_until=held_until[0], arms=tuple(names),
            evidence=known[0],
        )  # fmt: skip
        if kept_in is None:
            return now
        try:
            now.keep(kept_in)
        except OSError as error:  # the route is what it is; only a restart would not know it
            said = f"the route could not be kept in {shown(kept_in)}: {reason_of(error)}"
            say(f"{said}; a server that is started again begins with an older one")
        return now

    def announce(ready: Ready) -> None:
        routed.append((ready.address, spec.route, spec.weight, reason))
        now = keep(*routed[-1])
        say(f"serving {', '.join(names)} on {ready.address}/v1: {now.said()}")
        of = shown(state) if state else run.name if run else None
        how = f"workbench route {of} --back" if of else f"{TOKEN_HEADER}: {token}"
        say(f"the way back: {how}")
        if not kept_in:
            say("the route is not kept: started again, this server begins as now; --state keeps it")

    def switched(switch: Switch) -> None:
        if switch.held_s:
            held_until[0] = time.time() + switch.held_s
        if switch.to_arm != switch.from_arm:
            known[0] = None
        routed.append((routed.pop()[0], switch.to_arm, switch.weight, switch.reason))
        now = keep(*routed[-1])
        say(f"route: {now.said()}")

    def say(text: str) -> None:
        if front.log == "json":
            log.info(text)
        else:
            print(text, flush=True)

    def counted(evidence: dict[str, Any] | None) -> None:
        if kept_in and routed and evidence != known[0]:
            known[0] = evidence
            keep(*routed[-1])

    routed: list[tuple[str, str, float, str]] = []
    """Address, arm, weight and reason: of the latest route."""
    serve(spec, announce, token, switched, counted)


def _with_draft(
    arms: dict[str, Path], draft: str
) -> tuple[dict[str, Path], dict[str, Path | None]]:
    """The arms with ``speculative`` behind the fallback, and what drafts for it."""
    from workbench.engine.speculative import require_same_tokenizer

    if not arms or SPECULATIVE in arms:
        raise ConfigError(
            f"--draft {draft} " + ("beside an arm speculative" if arms else "of upstreams"),
            allowed="a run, or model folders of which none is called speculative",
        )
    (name, fallback), *others = arms.items()
    folder = None if draft == "prompt" else Path(draft)
    if folder is not None and not (folder / "config.json").is_file():
        raise ConfigError(
            f"--draft {draft}",
            allowed="a model folder of the fallback's tokenizer, or prompt: guesses from the text",
        )
    if folder is not None:
        require_same_tokenizer(fallback, folder)
    return {name: fallback, SPECULATIVE: fallback, **dict(others)}, {SPECULATIVE: folder}


def rule_of(text: str) -> RollbackRule:
    """``ttft_s=0.5,max_error_share=0.05``: a rule with these fields. Raises ConfigError."""
    from workbench.pilot.sections.deploy_rollback import Rule

    names = [each.name for each in fields(RollbackRule)]
    given: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.strip().partition("=")
        try:
            given[name] = float(value)
            Rule(**{name: given[name]})  # the limits of the pilot's own
        except ValueError as error:  # pydantic's are ValueErrors too
            why = getattr(error, "errors", lambda: [{"msg": "no number"}])()[0]["msg"]
            raise ConfigError(
                f"--rule {pair}: {why}",
                allowed=f"NAME=NUMBER with commas; names: {', '.join(names)}",
            ) from None
    return RollbackRule(**given)


def _kept_in(state: Path | None, run: Run | None) -> Path | None:
    if state is None:
        return route_file(run) if run else None
    if state.is_dir() or not state.absolute().parent.is_dir():
        raise ConfigError(f"--state {shown(state)}", allowed="a file in a folder that is there")
    return state


def _of_pilot(run: Run | None) -> dict[str, Any]:
    """When the run's pilot would go back, how long a share stays lowered, how large it is and how
    it grows, what becomes of a request that is late or loses its arm, and how weights lie in
    memory."""
    if run is None:
        return {}
    pilot = run.resolved().pilot
    section = pilot.deploy_rollback
    rule = RollbackRule(**section.rollback_rule.model_dump()) if section.rollback_rule else None
    steps = section.canary
    plan = steps and CanaryPlan(**(steps.model_dump() | {"steps": tuple(steps.steps)}))
    same = ("hold_s", "weight", "deadline_s", "on_lost_stream")
    kept = {"rule": rule, "canary": plan, "packing": pilot.readiness.packing}
    return kept | {name: getattr(section, name) for name in same}


def _meters(run: Run | None) -> dict[str, Any]:
    """The section of the pilot's meters, or what finds those of this machine."""
    from workbench.pilot.sections.meters import Meters

    section = run.resolved().pilot.measure_ab.meters if run else Meters()
    return section.model_dump(mode="json")


def _probes(run: Run | None) -> tuple[ProbePrompt, ...]:
    """The pilot's own prompts, or beginnings of the texts that were held out of the training."""
    own = run.resolved().pilot.prompts if run else None
    if own and own.file:
        try:
            return _asked(Path(own.file))
        except ConfigError as error:  # it may lie on the machine that trained
            log.warning("%s; held-out texts take the place of these prompts", error.got)
    record = run.record("train_qat") if run else None
    if record is None or "heldout" not in record.tables:
        return ()
    texts = record.table("heldout")["text"]
    return tuple(text[:PROBE_CHARACTERS] for text in texts[:PROBES] if text.strip())


def _asked(path: Path) -> tuple[ProbePrompt, ...]:
    """Of a file as a pilot's ``prompts`` takes it. Raises ConfigError."""
    from workbench.data.asked_file import read_asked
    from workbench.data.own_prompts import OwnPrompt

    rows = read_asked(path, OwnPrompt, PROBES)
    return tuple(
        [turn.model_dump() for turn in row.messages] if row.messages else row.text for row in rows
    )


def _given_probes(path: Path) -> tuple[ProbePrompt, ...]:
    if path.suffix == ".jsonl":
        return _asked(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--probes {shown(path)}: {error}") from None
    if not (found := tuple(line for line in lines if line.strip())):
        raise ConfigError(f"--probes {shown(path)} has no prompt", allowed="a prompt a line")
    return found


def _served_run(folders: Sequence[Path | str]) -> Run | None:
    from workbench.records.run import HEADER, find_run

    first = Path(folders[0]) if folders else Path()
    if len(folders) == 1 and (not first.is_dir() or (first / HEADER).exists()):
        return find_run(str(first))
    return None


def arms_of(given: Sequence[Path | str]) -> dict[str, Path]:
    """Names and model folders; see :func:`serve_run`."""
    folders = [Path(each) for each in given]
    if run := _served_run(folders):
        arms = {}
        for arm, stage in (("full_precision", "train_qat"), ("hybrid", "hybrid_plan")):
            record = run.record(stage)
            if record is None:
                raise StageError(
                    f"{run.name} has no finished {stage}, which makes the arm {arm}",
                    next_step="finish that run with workbench run, or name model folders",
                )
            arms[arm] = record.artefact(arm)
        return arms
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{shown(folder)} is neither a run nor a model folder",
                allowed="a run's folder, or folders with config.json, weights and tokenizer",
                next_step="workbench runs lists the runs",
            )
    for folder in folders:
        _require_text(folder.resolve().name)
    arms = {folder.resolve().name: folder for folder in folders}
    if not folders or len(arms) < len(folders):
        raise ConfigError(
            f"{number_of(len(folders), 'folder')} with {len(arms)} different names",
            allowed="one or more model folders whose last parts differ: they name the arms",
        )
    return arms


def _require_text(name: str) -> None:
    """ConfigError for a folder's name that no answer could carry: it becomes the arm's name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"the model folder {name!a} has bytes in its name that are no UTF-8",
            allowed="a name in UTF-8: the arm is called by it",
            next_step="rename the folder, or give a link to it",
        ) from None
