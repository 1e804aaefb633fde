"""Who the requests belong to and how many are there at once: sessions, tenants, concurrency.

A month has millions of sessions. Those whose digest falls into a share of all digests are kept,
whole, so that their turns are an honest sample; memory does not grow with the trace.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.load.store import Store

MOST_ROWS = 2_000_000
"""Requests of the sampled sessions."""
MOST_CHATS = 4_000_000
"""Requests in which chains of chats are followed."""
MOST_TENANTS = 1_000_000
MIX = np.uint64(0x9E3779B97F4A7C15)
LARGEST_SHOWN = 10


def sessions_of(store: Store) -> dict[str, Any] | None:
    """Turns of a session and the time between them; None where the trace names no sessions."""
    columns = store.columns()
    if "session" in columns:
        rows = _sampled(store)
        how = "sessions named by the trace"
    elif "chat" in columns and "parent" in columns:
        rows = _chains(store)
        how = "chains of chats and the chats that they go on from"
    else:
        return None
    rows = rows[rows["session"] != 0]
    if rows.empty:
        return None
    turns = rows.groupby("session").size()
    ordered = rows.sort_values(["session", "start_s"], kind="stable")
    pauses_s = ordered["start_s"].diff()[ordered["session"].eq(ordered["session"].shift())]
    return {
        "how": how,
        "sessions": len(turns),
        "turns_mean": float(turns.mean()),
        "turns": _quantiles(turns.to_numpy()),
        "pause_s": _quantiles(pauses_s.to_numpy()) if len(pauses_s) else None,
    }


def _sampled(store: Store) -> pd.DataFrame:
    """Times and sessions of the requests of sampled sessions; every k-th digest is kept."""
    kept, every, size = [], 1, 0
    for batch in store.batches(["start_s", "session"]):
        mixed = batch["session"].view(np.uint64) * MIX >> np.uint64(20)
        chosen = mixed % np.uint64(every) == 0
        kept.append(
            pd.DataFrame(
                {
                    "start_s": batch["start_s"][chosen],
                    "session": batch["session"][chosen],
                    "mixed": mixed[chosen],
                }
            )
        )
        size += int(chosen.sum())
        while size > MOST_ROWS:
            every *= 2
            kept = [rows[rows["mixed"] % every == 0] for rows in kept]
            size = sum(map(len, kept))
    return pd.concat(kept, ignore_index=True)


def _chains(store: Store) -> pd.DataFrame:
    """Every chat with the first chat of its chain as its session."""
    parts, size = [], 0
    for batch in store.batches(["start_s", "chat", "parent"]):
        parts.append(pd.DataFrame(batch))
        if (size := size + len(parts[-1])) >= MOST_CHATS:
            break
    rows = pd.concat(parts, ignore_index=True)
    chats = np.sort(rows["chat"].unique())
    parents = np.arange(len(chats))
    first = rows.drop_duplicates("chat").sort_values("chat")
    at = np.searchsorted(chats, first["parent"].to_numpy())
    at = np.minimum(at, len(chats) - 1)
    known = chats[at] == first["parent"].to_numpy()
    parents[known] = at[known]
    for _ in range(64):  # each round doubles the steps that a chat looks back
        further = parents[parents]
        if (further == parents).all():
            break
        parents = further
    roots = chats[parents[np.searchsorted(chats, rows["chat"].to_numpy())]]
    return pd.DataFrame({"start_s": rows["start_s"], "session": roots + 1})


def tenants_of(store: Store) -> dict[str, Any] | None:
    """How many tenants there are and what share the largest have; None where none is named."""
    if "tenant" not in store.columns():
        return None
    totals: pd.Series = pd.Series(dtype=np.int64)
    for batch in store.batches(["tenant"]):
        values, counts = np.unique(batch["tenant"], return_counts=True)
        totals = totals.add(pd.Series(counts, index=values), fill_value=0)
        if len(totals) > MOST_TENANTS:
            return None
    totals = totals.drop(0, errors="ignore").sort_values(ascending=False)
    if totals.empty:
        return None
    shares = (totals / totals.sum()).head(LARGEST_SHOWN)
    return {"tenants": len(totals), "largest_shares": [float(share) for share in shares]}


def concurrency_of(store: Store, span_s: float) -> dict[str, float] | None:
    """Requests that are served at the same time; None where the trace has no durations.

    On a grid of at most a million windows: a request counts from the window it begins in to the
    one it ends in.
    """
    if "duration_s" not in store.columns():
        return None
    width_s = max(span_s / 2**20, 0.1)
    windows = int(span_s // width_s) + 2
    change = np.zeros(windows + 1, np.int64)
    total_s, n = 0.0, 0
    for batch in store.batches(["start_s", "duration_s"]):
        good = np.isfinite(batch["duration_s"]) & (batch["duration_s"] >= 0)
        begin, lasted = batch["start_s"][good], batch["duration_s"][good].astype(float)
        first = (begin // width_s).astype(np.int64)
        last = np.minimum(((begin + lasted) // width_s).astype(np.int64), windows - 1)
        change += np.bincount(first, minlength=windows + 1)[: windows + 1]
        change -= np.bincount(last + 1, minlength=windows + 1)[: windows + 1]
        total_s, n = total_s + float(lasted.sum()), n + len(lasted)
    if not n:
        return None
    at_once = np.cumsum(change)[: max(1, int(span_s // width_s))]
    return {
        "mean": total_s / span_s,
        "p95": float(np.quantile(at_once, 0.95)),
        "most": int(at_once.max(initial=0)),
        "duration_mean_s": total_s / n,
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{100 * q:g}": float(np.quantile(values, q)) for q in (0.5, 0.9, 0.99)}
