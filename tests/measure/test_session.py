"""The A/B session: turns, kills, energy, figures; and the stage over real small artefacts."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.data.document import Document, documents_frame
from workbench.data.tokenizer import load_tokenizer, train_tokenizer
from workbench.engine.engine import Engine
from workbench.errors import StageError
from workbench.measure import session
from workbench.measure.ab_figures import (
    energy_figures,
    latency_figures,
    quality_figures,
    visible_effects,
)
from workbench.measure.latency import LoadClass, Span, take_turn
from workbench.measure.meters import EnergySession, MissingMeter
from workbench.measure.meters.sample import Channel, Sample
from workbench.measure.orders import williams
from workbench.measure.quality import (
    QualityProbes,
    documents_of,
    engine_losses,
    independent_units,
    judged_excerpts,
)
from workbench.measure.session import (
    AGAIN,
    COLUMNS,
    Ending,
    Session,
    block_seconds,
    blocks_in_time,
    out_of_time,
)
from workbench.pilot.sections.model import Policy
from workbench.pilot.sections.prompts import Prompts
from workbench.pilot.sections.readiness import Quiet
from workbench.pilot.sections.report import Gate
from workbench.pilot.sections.tasks import Task
from workbench.pilot.spec import Pilot
from workbench.records.events import Progress
from workbench.records.metric import Metric
from workbench.records.stage_record import StageRecord
from workbench.report.gates import evaluate
from workbench.stages import measure_ab, profile_load
from workbench.stages.context import StageContext
from workbench.ternary import ThresholdVersion, to_ternary
from workbench.ternary.packed import save_packed
from workbench.train.quality import document_losses
from workbench.wording.vocabulary import FIGURES

CONFIG = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
)  # fmt: skip
CLASSES = [
    LoadClass.interactive(8, 1),
    LoadClass.interactive(8, 5),
    LoadClass.batched(8, 3, 2),
]
PROMPTS = [tuple(range(i, i + 8)) for i in range(4)]


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SHORTEST_TURN_S", dict.fromkeys(session.SHORTEST_TURN_S, 0.02))


@pytest.fixture
def engines() -> Iterator[dict[str, Engine]]:
    made = {
        "full_precision": Engine.random(CONFIG, "half", slots=2, threads=1),
        "ternary": Engine.random(CONFIG, "ternary", slots=2, threads=1),
    }
    yield made
    for engine in made.values():
        engine.close()


class ConstantPower:
    """A meter that always reads 10 W."""

    reader = "rapl"

    def __init__(self) -> None:
        self.notes: list[str] = []

    def read(self) -> list[Sample]:
        channel = Channel("rapl", "package-0", "cpu", "power", averaging_s=0.0, lag_s=0.0)
        return [Sample(channel, time.monotonic(), time.time(), 10.0)]

    def close(self) -> None:
        pass


def no_meters() -> EnergySession:
    return EnergySession([], [MissingMeter("rapl", "there is none")])


ANY_NOISE = Quiet(max_others_share=1, max_steal_share=1, max_pressure_share=1)


def blocks_of(most: int, precision: float = 1e-9, budget_s: float = 600.0) -> Ending:
    return Ending(most, precision, budget_s)


def test_arms_take_turns_in_orders_of_a_williams_square(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    seen = []
    with no_meters() as meters:
        made = Session(tmp_path, engines, CLASSES, PROMPTS, meters, ANY_NOISE)
        blocks = made.run(blocks_of(6), lambda done, total: seen.append((done, total)))
        noise = made.noise()
    assert list(blocks.columns) == COLUMNS
    assert seen == [(i, 54) for i in range(1, 55)]
    order = blocks[blocks["phase"] == "request"].groupby(["block", "class"])["arm"].agg(tuple)
    arms = ["full_precision", "ternary", AGAIN]
    assert {order[block, "batch_2"] for block in range(6)} == set(map(tuple, williams(arms)))
    assert list(noise["kept"]) == [True] * 6
    rows = blocks[blocks["class"] == "interactive_5"].set_index("phase")
    per_request = rows["tokens"] / rows["sequences"]
    assert set(per_request["prefill"]) == {8} and set(per_request["decode"]) == {4}
    batch = blocks[blocks["class"] == "batch_2"]
    assert set(batch.loc[batch["phase"] == "decode", "tokens"] / batch["sequences"].min()) == {3}
    energies, whole = made.energies(), blocks[blocks["phase"] == "request"]
    assert len(energies) == len(whole) and energies["energy_j"].isna().all()
    assert energies["how"].unique() == ["no_meter: rapl: there is none"]


def test_the_work_of_a_turn_is_the_same_whatever_the_model_says(
    engines: dict[str, Engine],
) -> None:
    """The end token is ignored: lengths are forced."""
    engine = engines["ternary"]
    engine.eos_tokens = frozenset(range(300))
    spans = {s.phase: s for s in take_turn(engine, CLASSES[1], PROMPTS, 3)}
    assert (spans["request"].tokens, spans["request"].sequences) == (15, 3)
    assert spans["prefill"].seconds + spans["decode"].seconds == pytest.approx(
        spans["request"].seconds
    )
    assert not engine.core.filled.any()


def test_a_killed_session_goes_on_with_the_block_it_was_in(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill_in_third(done: int, total: int) -> None:
        if done == 2 * 9 + 5:
            raise Killed

    with no_meters() as meters, pytest.raises(Killed):
        made = Session(tmp_path, engines, CLASSES, PROMPTS, meters, ANY_NOISE)
        made.run(blocks_of(4), kill_in_third)
    kept = {path.name: path.read_bytes() for path in tmp_path.glob("block-*.json")}
    assert sorted(kept) == ["block-000.json", "block-001.json"]
    repeats = (tmp_path / "repeats.json").read_bytes()
    with no_meters() as meters:
        resumed = Session(tmp_path, engines, CLASSES, PROMPTS, meters, ANY_NOISE)
        assert resumed.finished() == 2
        blocks = resumed.run(blocks_of(4), lambda done, total: None)
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert (tmp_path / "repeats.json").read_bytes() == repeats
    assert blocks.groupby("block").size().nunique() == 1
    assert sorted(blocks["block"].unique()) == [0, 1, 2, 3]


def test_a_session_ends_when_its_ratios_are_precise_or_its_time_is_up(
    engines: dict[str, Engine], tmp_path: Path
) -> None:
    def ran(name: str, ending: Ending) -> int:
        with no_meters() as meters:
            made = Session(tmp_path / name, engines, CLASSES[:1], PROMPTS, meters, ANY_NOISE)
            return made.run(ending, lambda *_: None)["block"].nunique()

    assert ran("precise", blocks_of(30, precision=10.0)) == 8
    assert ran("late", blocks_of(30, budget_s=1e-6)) == 2, "twice its time is gone"
    assert ran("most", blocks_of(3)) == 3


@pytest.mark.parametrize("block_s", [0.3, 1.0, 1.7, 2.0, 3.0, 9.0, 11.0, 40.0])
def test_the_blocks_that_progress_counts_to_are_those_that_time_allows(block_s: float) -> None:
    ending, blocks = Ending(24, 0.05, 20.0), 0
    while blocks < ending.blocks and not out_of_time(
        [{"seconds": block_s}] * blocks, blocks, ending.budget_s
    ):
        blocks += 1
    assert blocks_in_time(block_s, ending) == blocks


def test_a_disturbed_block_is_measured_again_while_time_is_left_and_then_marked(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True, False, True, True])  # block 0: again, then quiet; block 1: twice
    monkeypatch.setattr(
        session.Noise, "disturbances", lambda self, limits: ["busy"] if next(looks) else []
    )
    monkeypatch.setattr(session, "repeating_left_s", lambda of, past: 0.0 if past else 1e9)
    with no_meters() as meters:
        made = Session(tmp_path, engines, CLASSES[:1], PROMPTS, meters)
        blocks = made.run(blocks_of(2), lambda *_: None)
        noise = made.noise()
    assert noise[["block", "attempt", "disturbed", "kept"]].to_numpy().tolist() == [
        [0, 0, "busy", False], [0, 1, "", True], [1, 0, "busy", True]
    ]  # fmt: skip
    assert len(blocks) == 2 * 3 * 2, "of the disturbed attempt nothing is kept"
    facts = session.noise_facts(session.Noise(1, 0, 0, 0, None, None), noise)
    assert (facts["blocks"], facts["disturbed"], facts["repeated"]) == (2, 1, 1)


def test_what_an_arm_leaves_behind_falls_on_no_timed_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines of a clock of their own: a request right after full precision is 5 % slower."""
    random, last = np.random.default_rng(0), [""]

    def turn(engine: str, wanted: LoadClass, prompts: object, repeats: int) -> list[Span]:
        seconds = {"full_precision": 1.0, "ternary": 0.97}[engine]
        seconds *= 1.05 if last[0] == "full_precision" != engine else 1.0
        last[0] = engine
        seconds *= random.lognormal(0, 0.01)
        return [Span(phase, seconds, 1, 1) for phase in ("prefill", "request")]

    monkeypatch.setattr(session, "take_turn", turn)
    held = []
    for trial in range(20):
        with no_meters() as meters:
            names = {name: name for name in ("full_precision", "ternary")}
            made = Session(tmp_path / str(trial), names, CLASSES[:1], PROMPTS, meters, ANY_NOISE)
            blocks = made.run(blocks_of(8), lambda *_: None)
        found = {
            metric.name: metric
            for metric in latency_figures(blocks, "full_precision", CLASSES[:1], "here")
        }
        held.append(found["speedup"].lo <= 1 / 0.97 <= found["speedup"].hi)
    assert np.mean(held) >= 0.8, "20 trials of 0.95"


def energy_table(blocks: int, joules: dict[tuple[str, str], float], **changed) -> pd.DataFrame:
    """joules: (basis, arm) -> energy of each turn of two requests with five tokens each."""
    rows = [
        {
            "block": block, "order": 0, "arm": arm, "class": "interactive_5", "tokens": 10,
            "sequences": 2, "basis": basis, "covers": f"{basis} meter", "kind": "measured",
            "energy_j": joules[basis, arm], "error_j": 0.0, "bias_j": 0.0, "how": "gross",
            "start_s": 0.0, "end_s": 2.0, "idle_w": 2.0, "idle_error_w": 0.0,
        }
        for block in range(blocks)
        for basis, arm in joules
    ]  # fmt: skip
    return pd.DataFrame(rows).assign(**changed)


TWO_ARMS = {("node", "full_precision"): 14.0, ("node", "ternary"): 10.0}
BOARDS = {("gpu", "full_precision"): 6.0, ("gpu", "ternary"): 3.0}


def energies_of(table: pd.DataFrame) -> dict[tuple[str, str], Metric]:
    found = energy_figures(table, "full_precision", CLASSES[1:2])
    return {(m.name, m.labels["arm"]): m for m in found}


def test_energies_are_of_a_request_and_a_token_and_their_ratio_is_within_blocks() -> None:
    drift = np.repeat([1.0, 2.0, 4.0, 1.0, 2.0, 4.0], 2)
    table = energy_table(6, TWO_ARMS)
    found = energies_of(table.assign(energy_j=table["energy_j"] * drift))
    assert found["energy_j_per_request", "ternary"].value == pytest.approx(5.0 * 14 / 6)
    assert found["energy_j_per_token", "full_precision"].value == pytest.approx(1.4 * 14 / 6)
    net = found["energy_net_j_per_request", "ternary"]
    assert net.value == pytest.approx(5.0 * 14 / 6 - 2.0)
    assert net.how.startswith("net of the idle power measured before and after, node meter")
    unknown = energies_of(table.assign(idle_w=None))["energy_net_j_per_request", "ternary"]
    assert unknown.reason == "no idle power was measured around the turns"
    ratio = found["energy_ratio", "ternary"]
    assert (ratio.value, ratio.lo, ratio.hi) == pytest.approx((1.4, 1.4, 1.4))
    assert "within blocks; node meter" in ratio.how
    assert ("energy_ratio", "full_precision") not in found


def test_one_turn_without_energy_costs_its_block_and_not_the_class() -> None:
    table = energy_table(8, TWO_ARMS)
    table.loc[5, ["energy_j", "how"]] = [None, "not_bracketed: csv a: last sample 1 s before"]
    found = energies_of(table)
    for (name, _), metric in found.items():
        assert metric.n == 7, name
        assert "1 of 8 blocks left out (not_bracketed: csv a: last sample 1 s before)" in metric.how
    assert found["energy_ratio", "ternary"].value == pytest.approx(1.4)


def test_all_arms_stand_on_the_widest_basis_that_most_blocks_have() -> None:
    table = energy_table(8, BOARDS | TWO_ARMS)
    assert energies_of(table)["energy_ratio", "ternary"].value == pytest.approx(1.4)
    node = table["basis"] == "node"
    broken = table.copy()
    broken.loc[node & (table["arm"] == "ternary"), ["energy_j", "how"]] = [None, "gap: 10 s"]
    found = energies_of(broken)
    assert found["energy_ratio", "ternary"].value == pytest.approx(2.0)
    for metric in found.values():
        assert (
            "gpu meter" in metric.how and "not node meter: 8 of 16 turns: gap: 10 s" in metric.how
        )
    none = energies_of(table.assign(energy_j=None, how="gap: 10 s"))
    assert {m.reason for m in none.values()} == {
        "not node meter: gap: 10 s; not gpu meter: gap: 10 s"
    }


def test_what_every_block_has_wrong_alike_widens_the_interval() -> None:
    found = energies_of(energy_table(8, TWO_ARMS, bias_j=0.5))
    full, ratio = found["energy_j_per_request", "full_precision"], found["energy_ratio", "ternary"]
    assert (full.lo, full.hi) == pytest.approx((7.0 - 0.25, 7.0 + 0.25))
    widened = 1 + 0.5 / 14 + 0.5 / 10
    assert (ratio.lo, ratio.hi) == pytest.approx((1.4 / widened, 1.4 * widened))


@pytest.mark.parametrize("quickest_s", [0.0002, 0.49, 0.81, 0.95, 1.3])
def test_a_turn_is_never_shorter_than_its_meter_needs(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickest_s: float
) -> None:
    class Board(ConstantPower):
        reader = "nvml"

    monkeypatch.setitem(session.SHORTEST_TURN_S, "nvml", 1.2)
    monkeypatch.setattr(Session, "_expected_s", lambda *_: quickest_s)
    with EnergySession([Board()], idle_s=0.0) as meters:
        repeats = Session(tmp_path, engines, CLASSES[:1], PROMPTS, meters)._repeats(blocks_of(1))
    (turns,) = repeats.values()
    assert 1.2 <= turns * quickest_s < 1.2 + quickest_s * 1.01


@pytest.mark.parametrize(("budget_s", "lasts_s"), [(1e6, 22.0), (120.0, 120.0 / 6 / 3)])
def test_turns_for_a_log_that_comes_afterwards_last_as_long_as_asked_within_the_time(
    engines: dict[str, Engine], tmp_path: Path, budget_s: float, lasts_s: float
) -> None:
    asked = Session(tmp_path, engines, CLASSES[:1], PROMPTS, no_meters(), turn_s=22.0)
    assert asked._log_turn_s(Ending(6, 0.05, budget_s)) == pytest.approx(lasts_s)
    assert any("raise measure_ab.budget_s to 396" in note for note in asked.notes) == (
        budget_s < 396
    )


def test_energy_is_that_of_each_turn_and_survives_a_kill(
    engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for three samples on a machine that has other things to do.
    monkeypatch.setattr(session, "SHORTEST_TURN_S", dict.fromkeys(session.SHORTEST_TURN_S, 0.3))

    def meters() -> EnergySession:
        return EnergySession([ConstantPower()], idle_s=0.05, interval_s=0.005)

    began = time.monotonic()
    with meters() as first:
        one = Session(tmp_path, engines, CLASSES[1:2], PROMPTS, first, ANY_NOISE)
        one.run(blocks_of(1), lambda *_: None)
    with meters() as second:
        resumed = Session(tmp_path, engines, CLASSES[1:2], PROMPTS, second, ANY_NOISE)
        blocks = resumed.run(blocks_of(2), lambda *_: None)
        samples, energies = resumed.samples(), resumed.energies()
    whole = blocks[blocks["phase"] == "request"]
    assert (energies["energy_j"].to_numpy() > 0.999 * 10.0 * whole["seconds"].to_numpy()).all()
    assert energies["energy_j"].sum() < 10.0 * (time.monotonic() - began)
    assert set(energies["kind"]) == {"measured"} and set(energies["basis"]) == {"cpu"}
    assert samples["wall_s"].is_monotonic_increasing and set(samples["value"]) == {10.0}


def block_table(seconds: dict[str, list[float]], phases=("prefill", "decode", "request")):
    rows = [
        {
            "block": block, "order": 0, "arm": arm, "class": "interactive_5", "batch": 1,
            "phase": phase, "seconds": 2 * value, "tokens": 10, "sequences": 2,
        }
        for arm, values in seconds.items()
        for block, value in enumerate(values)
        for phase in phases
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_figures_are_made_within_blocks() -> None:
    """A machine that slows down fourfold changes the latencies and not the ratio."""
    drift = np.array([1.0, 2.0, 4.0, 1.0, 2.0, 4.0])
    noise = np.array([1.0, 1.01, 0.99, 1.0, 1.01, 0.99])
    blocks = block_table(
        {
            "full_precision": (0.3 * drift).tolist(),
            "ternary": (0.1 * drift * noise).tolist(),
            AGAIN: (0.3 * drift * np.array([1.02, 0.98, 1.0, 1.02, 0.98, 1.0])).tolist(),
        }
    )
    metrics = {
        (m.name, m.labels.get("arm")): m
        for m in latency_figures(blocks, "full_precision", CLASSES[1:2], "here")
    }
    speedup = metrics["speedup", "ternary"]
    assert speedup.value == pytest.approx(3.0, rel=1e-3)
    assert 2.9 < speedup.lo < 3.0 < speedup.hi < 3.1
    assert metrics["latency_ms", "ternary"].value == pytest.approx(233.1, abs=0.5)
    assert metrics["tpot_ms", "full_precision"].value == pytest.approx(700 / 4)
    assert ("speedup", "full_precision") not in metrics
    assert not any(arm == AGAIN for _, arm in metrics)
    (effect,) = visible_effects(blocks, "full_precision", CLASSES[1:2])
    assert 0.01 < abs(effect.value) < 0.04
    assert list(block_seconds(blocks, "interactive_5", "request")["ternary"]) == pytest.approx(
        (0.1 * drift * noise).tolist()
    )


def test_a_request_of_one_token_has_no_time_per_token() -> None:
    blocks = block_table({"full_precision": [0.1, 0.2]}, phases=("prefill", "request"))
    blocks["class"] = "interactive_1"
    found = list(latency_figures(blocks, "full_precision", CLASSES[:1], "here"))
    (tpot,) = [m for m in found if m.name == "tpot_ms"]
    assert tpot.value is None and "one output token" in tpot.reason


def test_quality_is_compared_on_the_same_excerpts() -> None:
    rng = np.random.default_rng(0)
    size_bytes = rng.integers(500, 1500, 128)
    hard = rng.uniform(0.5, 2.0, 128)
    frames = [
        pd.DataFrame(
            {
                "id": [f"d{i // 2}@{i % 2}" for i in range(128)], "source": "x", "arm": arm,
                "nats": np.log(2) * size_bytes * (hard + worse), "bytes": size_bytes,
            }
        )
        for arm, worse in (("full_precision", 0.0), ("ternary", 0.05))
    ]  # fmt: skip
    metrics = {
        (m.name, m.labels["arm"]): m
        for m in quality_figures(pd.concat(frames), "full_precision", 500, 0)
    }
    gap = metrics["quality_gap_bits_per_byte", "ternary"]
    assert (gap.value, gap.n) == (pytest.approx(0.05), 64)
    assert gap.hi - gap.lo < 1e-6
    whole = metrics["bits_per_byte", "ternary"]
    assert whole.hi - whole.lo > 0.05


def test_a_baseline_that_fine_tuning_made_worse_flatters_nobody() -> None:
    size_bytes = np.full(128, 1000)
    frames = [
        pd.DataFrame(
            {
                "id": [f"d{i}@0" for i in range(128)], "source": "x", "arm": arm,
                "nats": np.log(2) * size_bytes * (1.0 + worse), "bytes": size_bytes,
            }
        )
        for arm, worse in (("full_precision", 0.3), ("ternary", 0.35), ("checkpoint", 0.0))
    ]  # fmt: skip
    gaps = [
        m
        for m in quality_figures(pd.concat(frames), "full_precision", 200, 0)
        if m.name == "quality_gap_bits_per_byte"
    ]
    found = {(m.labels["arm"], m.labels.get("over")): round(m.value, 6) for m in gaps}
    assert found == {
        ("full_precision", "checkpoint"): 0.3,
        ("ternary", None): 0.05,
        ("ternary", "checkpoint"): 0.35,
        ("checkpoint", None): -0.3,
    }
    measured = StageRecord("measure_ab", Path(), metrics=gaps)
    gate = Gate(metric=gaps[0].name, labels={"arm": "ternary", "source": "trained"}, at_most=0.1)
    outcomes = [result.outcome for result in evaluate([gate], {"measure_ab": measured})]
    assert outcomes == ["pass", "fail"], "the gate must hold against both"


def test_sources_are_resampled_where_there_are_enough_of_them() -> None:
    ids = [f"d{i}@0" for i in range(160)]
    few = pd.DataFrame({"id": ids, "source": ["a", "b"] * 80})
    assert independent_units(few) == (
        documents_of(few["id"]), "resampled by document, of these 2 sources alone"
    )  # fmt: skip
    many = few.assign(source=[f"s{i % 80}" for i in range(160)])
    assert independent_units(many) == (list(many["source"]), "resampled by source, 80 sources")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> StageRecord:
    """A record of ``train_qat`` over an untrained model: small, and real in every format."""
    folder = tmp_path_factory.mktemp("train_qat")
    record = StageRecord("train_qat", folder)
    words = ["the", "tongues", "of", "men", "and", "angels", "sounding", "brass", "or", "cymbal"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 60)) for _ in range(12)]
    documents = [Document(f"d{i}", "test", text) for i, text in enumerate(texts)]
    tokenizer = train_tokenizer(documents, 300)
    tokenizer.save_pretrained(folder / "tokenizer")
    record.save_table("heldout", documents_frame(documents))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG)
    model.save_pretrained(folder / "full_precision")
    report = to_ternary(model, Policy(), ThresholdVersion())
    save_packed(model, folder / "ternary", report.precisions, ThresholdVersion(), tokenizer)
    tokenizer.save_pretrained(folder / "full_precision")
    record.artefacts = {name: name for name in ("tokenizer", "full_precision", "ternary")}
    return record


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> StageRecord:
    """A record of ``profile_load`` with requests that the small model holds."""
    folder = tmp_path_factory.mktemp("profile_load")
    lengths = {"prompt_tokens_p50": 8, "prompt_tokens_p99": 16, "output_tokens_p50": 6,
               "output_tokens_p99": 12}  # fmt: skip
    load = {"duration_s": 60.0, "rate_per_s": 20.0, **lengths}
    pilot = Pilot(name="ab", question="?", profile_load={"synthetic": load})
    record = StageRecord("profile_load", folder)
    profile_load.run(StageContext(pilot, record, Progress(folder / "e.jsonl", "profile_load"), {}))
    return record


def make_context(
    folder: Path, trained: StageRecord, profiled: StageRecord | None = None, **section
) -> StageContext:
    fields = {
        "arms": ["full_precision", "ternary"], "prompt_tokens": 8, "blocks": 2,
        "interactive_output_tokens": [1, 4], "batch_sizes": [1, 2], "batch_output_tokens": 3,
        "quality_documents": 9, "bootstrap": 100, "load": {"blocks": 0},
    }  # fmt: skip
    pilot = Pilot(
        name="ab",
        question="?",
        readiness={"threads": 1, "quiet": {"action": "warn"}},
        measure_ab={**fields, **section},
        data={"sequence_length": 16},
    )
    record = StageRecord("measure_ab", folder)
    progress = Progress(folder / "events.jsonl", "measure_ab")
    upstream = {"train_qat": trained, "profile_load": profiled or nothing_profiled(folder)}
    return StageContext(pilot, record, progress, upstream)


def nothing_profiled(folder: Path) -> StageRecord:
    return StageRecord("profile_load", folder, facts={"slo": {"interactive": {"ttft_ms": 500.0}}})


def test_the_stage_measures_everything_it_promises(trained: StageRecord, tmp_path: Path) -> None:
    context = make_context(tmp_path, trained)
    measure_ab.run(context)
    record = context.record
    assert set(record.tables) == {"blocks", "energies", "quality", "power", "noise"}
    quality = record.table("quality")
    assert quality.groupby("arm").size().to_dict() == {"full_precision": 9, "ternary": 9}
    # An untrained model knows nothing: about log2(300) bits a token.
    per_byte = record.metric("bits_per_byte", arm="full_precision", source="trained")
    assert 1.0 < per_byte.value < 9.0
    assert "9 groups, a bootstrap needs 64" in per_byte.reason
    names = {metric.name for metric in record.metrics}
    assert names == {
        "bits_per_byte", "quality_gap_bits_per_byte", "ttft_ms", "tpot_ms", "latency_ms",
        "speedup", "decode_tokens_per_s", "throughput_ratio", "smallest_visible_effect",
        "model_memory_mb", "memory_ratio", "energy_j_per_request", "energy_j_per_token",
        "itl_ms", "e2e_ms", "ttft_speedup", "itl_speedup", "tpot_speedup", "e2e_speedup",
        "goodput_per_s", "slo_met_share", "energy_net_j_per_request", "energy_ratio",
        "energy_j_per_accepted_answer", "prefill_energy_j_per_token", "decode_energy_j_per_token",
        "energy_net_ratio", "accepted_answer_energy_ratio", "metered_energy_j",
    }  # fmt: skip
    under_load = [metric for metric in record.metrics if metric.labels.get("source") == "load"]
    assert {m.reason for m in under_load} == {"left out: measure_ab.load.blocks is 0"}
    assert record.metric("memory_ratio", arm="ternary").value > 1.5
    energy = record.metric("energy_j_per_token", arm="ternary", source="trained")
    assert energy.value is None and "no_meter" in energy.reason

    again = make_context(tmp_path, trained)
    measure_ab.run(again)
    assert again.record.table("blocks").equals(record.table("blocks")), "nothing measured twice"
    assert "interrupted after 2 blocks" in " ".join(again.record.notes)


def test_own_prompts_and_tasks_are_asked_of_every_arm(trained: StageRecord, tmp_path: Path) -> None:
    prompts = [
        {"id": "text", "prompt": "the tongues of", "max_tokens": 4},
        {"messages": [{"role": "user", "content": "men"}], "regex": "(?s)."},
    ]
    tasks = [
        {"question": "men", "choices": ["and", "angels"], "answer": "and"},
        {"context": "sounding", "target": "brass"},
    ]
    for name, rows in (("prompts", prompts), ("tasks", tasks)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    context = make_context(tmp_path / "stage", trained, interactive_output_tokens=[1])
    own = {
        "prompts": Prompts(file=str(tmp_path / "prompts.jsonl"), max_tokens=6),
        "tasks": {"own": Task(file=str(tmp_path / "tasks.jsonl"))},
    }
    asked = replace(context, pilot=context.pilot.model_copy(update=own))
    assert measure_ab.check(asked.pilot) == []
    measure_ab.run(asked)
    record = asked.record
    rows = record.table("prompts")
    assert list(rows["arm"]) == ["full_precision", "ternary"] * 2
    assert list(rows["prompt"]) == ["text", "text", "2", "2"]
    assert rows["tokens"].max() <= 6 and record.facts["prompts_reference"] == "full_precision"
    assert set(record.table("tasks")["kind"]) == {"choice", "cloze"}
    assert len(record.table("task_pairs")) == 1
    for name in ("kl_nats_per_token", "top1_agreement", "answer_repetition", "accepted_share",
                 "accepted_difference", "task_accuracy", "task_accuracy_difference"):  # fmt: skip
        metric = record.metric(name, arm="ternary", source="trained")
        assert metric is not None and metric.labels.keys() <= {"arm", "source", "task"}
        assert any(metric.labels.keys() == of.keys() for of in FIGURES[name].labels)
    long = {"prompts": Prompts(file=str(tmp_path / "prompts.jsonl"), max_tokens=60)}
    with pytest.raises(StageError, match=r"prompts.jsonl, line 2: \d+") as caught:
        measure_ab.run(replace(context, pilot=context.pilot.model_copy(update=long)))
    assert "64 together, the positions of the models" in str(caught.value)


def test_wrong_files_of_own_prompts_are_found_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    (tmp_path / "open.jsonl").write_text('{"prompt": "a"}\n')
    bad, free = str(tmp_path / "bad.jsonl"), str(tmp_path / "open.jsonl")
    gate = {"metric": "accepted_share", "at_least": 0.5}
    pilot = Pilot(name="ab", question="?", prompts={"file": bad}, tasks={"own": {"file": bad}})
    problems = measure_ab.check(pilot)
    assert [text.split(": ")[0] for text in problems] == ["prompts.file", "tasks.own.file"]
    assert all("bad.jsonl, line 1" in text for text in problems)
    pilot = Pilot(name="ab", question="?", prompts={"file": free}, report={"gates": [gate]})
    (problem,) = measure_ab.check(pilot)
    assert problem.startswith("report.gates.0.metric") and "has a check" in problem


def test_quality_is_the_same_bits_every_time_and_that_of_transformers(
    trained: StageRecord,
) -> None:
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    judged = judged_excerpts(trained.table("heldout"), tokenizer, 16, 9)
    assert len(set(documents_of(judged["id"]))) == 9
    reports: list[int] = []
    losses = []
    for arm in ("full_precision", "ternary", "ternary"):
        with Engine.load(trained.artefact(arm), threads=1) as engine:
            losses.append(engine_losses(engine, tokenizer, judged, 16, reports.append))
    assert reports == [8, 9] * 3
    assert losses[1].equals(losses[2])
    model = AutoModelForCausalLM.from_pretrained(trained.artefact("full_precision"))
    wanted = document_losses(model, tokenizer, judged, 16)
    np.testing.assert_allclose(losses[0]["nats"], wanted["nats"], rtol=1e-3)


def test_excerpts_are_judged_in_slices_and_no_slice_twice(
    trained: StageRecord, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(trained.artefact("tokenizer")))
    judged = judged_excerpts(trained.table("heldout"), tokenizer, 16, 9)
    arms, heard = ("full_precision", "ternary"), []
    with ExitStack() as open_things:
        engines = {
            arm: open_things.enter_context(Engine.load(trained.artefact(arm), threads=1))
            for arm in arms
        }
        probes = QualityProbes(tmp_path, engines, tokenizer, judged, 16, slices=4)
        probes.judge(1, ["ternary", "today", "full_precision"])
        written = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-001-*")}
        assert len(written) == 2, "an address has no engine"
        quality = probes.finish(lambda *of: heard.append(of))
        whole = engine_losses(engines["ternary"], tokenizer, judged, 16, lambda done: None)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-001-*")} == written
    assert [(arm, of) for arm, done, of in heard[:2]] == [("full_precision", 3), ("ternary", 3)]
    own = {arm: rows.reset_index(drop=True) for arm, rows in quality.groupby("arm")}
    assert list(own["ternary"]["id"]) == list(own["full_precision"]["id"]) == list(judged["id"])
    assert list(own["ternary"]["slice"]) == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(own["ternary"]["nats"], whole["nats"], rtol=1e-5)


def test_requests_beyond_the_context_are_refused_before_anything_runs(
    trained: StageRecord, tmp_path: Path
) -> None:
    long = {"interactive_output_tokens": [4000], "prompt_tokens": 128}
    pilot = Pilot(name="ab", question="?", measure_ab=long)
    (problem,) = measure_ab.check(pilot)
    assert "128 prompt and 4000 output tokens; allowed: 1024 together" in problem
    with pytest.raises(StageError, match="a context of 108 tokens"):
        measure_ab.run(make_context(tmp_path, trained, interactive_output_tokens=[100]))


def test_too_little_text_for_a_prompt_is_said(trained: StageRecord, tmp_path: Path) -> None:
    short = StageRecord("train_qat", tmp_path, artefacts={"tokenizer": "tokenizer"})
    shutil.copytree(trained.artefact("tokenizer"), tmp_path / "tokenizer")
    short.save_table("heldout", documents_frame([Document("d", "test", "a")]))
    with pytest.raises(StageError, match="held-out text has 1 token"):
        measure_ab.run(make_context(tmp_path, short, arms=["full_precision"]))


@pytest.mark.slow
def test_the_load_is_sent_to_every_arm_and_a_killed_session_goes_on(
    trained: StageRecord, profiled: StageRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same requests at the same times, and no finished block is played again."""
    patient = {"max_dispatch_delay_ms": 60_000.0}
    load = {"blocks": 3, "block_s": 0.5, "budget_s": 20.0, **patient}
    context = make_context(tmp_path, trained, profiled, prompt_tokens=None, load=load)
    step = context.progress.step

    def killed(task: str, done: int, total: int, unit: str) -> None:
        if task == "arms under load" and done == 3:
            raise KeyboardInterrupt
        step(task, done, total, unit)

    monkeypatch.setattr(context.progress, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_ab.run(context)
    (first,) = (tmp_path / "load").glob("block-*.json")
    written = first.stat().st_mtime_ns

    again = make_context(tmp_path, trained, profiled, prompt_tokens=None, load=load)
    measure_ab.run(again)
    record = again.record
    assert first.stat().st_mtime_ns == written
    assert "the session under load was interrupted after 1 block" in record.notes
    requests = record.table("load_requests")
    assert set(requests["status"]) == {"ok"} and requests["block"].nunique() == 3
    assert (requests["output_tokens"] == requests["wanted_tokens"]).all()
    sent = {
        arm: own[["block", "id", "intended_s", "prompt_tokens", "wanted_tokens"]].reset_index(
            drop=True
        )
        for arm, own in requests.sort_values(["block", "id"]).groupby("arm")
    }
    assert set(sent) == {"full_precision", "ternary"}
    assert sent["full_precision"].equals(sent["ternary"])
    assert requests["id"].nunique() == len(sent["ternary"]), "every block has requests of its own"
    assert len(set(requests.groupby("block")["intended_s"].max() < 0.5)) == 1
    for arm in sent:
        for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
            figure = record.metric(name, arm=arm, source="load", quantile="p50")
            assert figure.value >= 0 and "3 blocks, an interval needs 6" in figure.reason
        assert record.metric("changed_answers", arm=arm).value == 0
        assert record.metric("bits_per_byte", arm=arm).how.startswith(
            "9 held-out excerpts, between the blocks of the load"
        )
        assert record.metric("changed_answers", arm=arm).n == 3
        assert record.metric("goodput_per_s", arm=arm).value > 0
        assert record.metric("network_round_trip_ms", arm=arm).value < 1000
        assert record.metric("capacity_per_s", arm=arm).value > 0
    assert record.metric("e2e_speedup", arm="ternary", quantile="p50").kind == "derived"
    assert record.metric("replay_speedup", source="load").kind == "derived"
    assert record.metric("cut_share", source="load").value == 0
    assert record.facts["prompt_tokens"] == {"median_of_the_load": 8, "taken": 8}
    for metric in record.metrics:
        labels = "".join(sorted(metric.labels))
        of = FIGURES[metric.name].labels
        assert labels in {"".join(sorted(own)) for own in of}, metric
