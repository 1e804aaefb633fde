"""One of the nodes of a small training; run as a script: ``on_nodes.py FOLDER TRAIN``, TRAIN its
settings as JSON, with MASTER_ADDR, MASTER_PORT and NODE_RANK. Ends as ``workbench`` does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from small_training import make_model, make_setup

from workbench.errors import WorkbenchError
from workbench.records.events import Progress
from workbench.train.arm import train_arm
from workbench.train.nodes import all_nodes

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, setup = Path(sys.argv[1]), make_setup(**json.loads(sys.argv[2]))
    try:
        with all_nodes(setup.train.launch) as leads:
            if leads:
                progress = Progress(folder / "events.jsonl", "train_qat")
                train_arm("ternary", make_model("ternary", setup), setup, folder, progress)
    except WorkbenchError as error:
        sys.exit(f"{error}")
