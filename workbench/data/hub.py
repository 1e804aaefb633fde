"""A data set of the Hugging Face hub, streamed; needs the optional package ``datasets``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from workbench.data.document import Document
from workbench.data.readers import Fields, missing_field
from workbench.errors import ConfigError

PREFIX = "hf:"


def read_hub(name: str, split: str, fields: Fields) -> Iterator[Document]:
    """The documents of ``hf:owner/name``, split ``split``, in the data set's own order.

    ``hf:owner/name/config`` chooses one of several configurations.
    Raises ConfigError when the package or the network is absent, or the name is wrong.
    """
    require_datasets(name)
    import datasets

    owner_and_name = name.removeprefix(PREFIX).split("/")
    config = owner_and_name[2] if len(owner_and_name) > 2 else None
    try:
        rows = datasets.load_dataset(
            "/".join(owner_and_name[:2]), config, split=split, streaming=True
        )
        columns = rows.column_names
        if columns and not {fields.text, fields.messages} & set(columns):
            raise missing_field(fields, columns, f"corpus {name}")
        for number, row in enumerate(rows, start=1):
            label = str(row.get("id", f"{split}#{number}"))
            yield fields.document(row, label, name, f"corpus {name}, row {number}")
    except ConfigError:
        raise
    except Exception as error:  # the hub's client raises errors of half a dozen packages
        raise ConfigError(
            f"corpus {name} could not be read: {type(error).__name__}: {_first_line(error)}",
            allowed="hf:owner/name or hf:owner/name/config, and a split it has",
            next_step="check the name and the network, or download it and give its folder",
        ) from None


def require_datasets(name: str) -> None:
    """ConfigError unless the optional package that reads ``name`` is installed."""
    if importlib.util.find_spec("datasets") is None:
        raise ConfigError(
            f"corpus {name}: the package datasets is not installed",
            next_step="pip install 'ternary-workbench[hub]', or give data.corpus a local file",
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]
