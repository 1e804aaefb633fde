"""Of a mix the quality on each corpus, from the excerpts that make the total."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from workbench.data.document import Document, documents_frame
from workbench.stages.measure_ab import _corpus_figures


def test_each_corpus_has_its_quality_and_its_gap() -> None:
    names = [("chat", f"chat/{i}") for i in range(4)] + [
        ("manuals", f"manuals/{i}@x") for i in "ab"
    ]
    heldout = documents_frame(
        [Document(name, corpus, "text", corpus=corpus) for corpus, name in names]
    )
    quality = pd.DataFrame(
        [
            {"id": f"{name}@0", "source": corpus, "nats": 70.0 + more, "bytes": 100, "arm": arm}
            for arm, more in (("full_precision", 0.0), ("ternary", 7.0))
            for corpus, name in names
        ]
    )
    quality.loc[quality["source"] == "manuals", "nats"] *= 2
    pilot = SimpleNamespace(measure_ab=SimpleNamespace(bootstrap=200), seed=1)
    found = list(_corpus_figures(SimpleNamespace(pilot=pilot), quality, heldout, "before the load"))
    values = {(m.name, m.labels["arm"], m.labels["corpus"]): m.value for m in found}
    bit = 1 / 100 / 0.6931471805599453
    assert values == {
        ("corpus_bits_per_byte", "full_precision", "chat"): pytest.approx(70 * bit),
        ("corpus_bits_per_byte", "ternary", "chat"): pytest.approx(77 * bit),
        ("corpus_quality_gap_bits_per_byte", "ternary", "chat"): pytest.approx(7 * bit),
        ("corpus_bits_per_byte", "full_precision", "manuals"): pytest.approx(140 * bit),
        ("corpus_bits_per_byte", "ternary", "manuals"): pytest.approx(154 * bit),
        ("corpus_quality_gap_bits_per_byte", "ternary", "manuals"): pytest.approx(14 * bit),
    }
    assert "4 held-out excerpts, of chat, before the load" in found[0].how
    single = documents_frame([Document("a", "s", "text")])
    assert not list(_corpus_figures(SimpleNamespace(pilot=pilot), quality, single, ""))
