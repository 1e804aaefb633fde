"""``workbench meter record``: a recording that ends well, however it is ended."""

from __future__ import annotations

import sys
from pathlib import Path

from workbench.measure.meters.recorder import Recorder
from workbench.paths import shown
from workbench.pilot.sections.meters import Meters
from workbench.runner.pilot_run import terminable
from workbench.wording.counts import number_of


def record_meters(section: Meters, out: Path, every_s: float, for_s: float | None) -> None:
    """Record until ``for_s`` are over, Ctrl-C or SIGTERM; what is said goes to standard error, the
    last line printed is the file. Raises ConfigError and StageError as :class:`Recorder`."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with terminable():
        recorder = Recorder(section, out, every_s, say=say)
        if recorder.kept:
            say(f"goes on with what is in {shown(out)}")
        say(f"recording every {every_s:g} s into {shown(out)}; Ctrl-C ends it")
        try:
            recorder.run(for_s)
        except KeyboardInterrupt:
            say("ended")
    for channel, samples in recorder.channels.items():
        say(f"{channel.name} {channel.quantity}: {number_of(samples, 'sample')}")
    for faults in recorder.faults.values():
        say(faults.text())
    print(shown(out))
