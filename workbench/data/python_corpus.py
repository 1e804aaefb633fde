"""The default corpus: the installed Python's own documentation, docstrings and source.

It exists on every machine that can run the workbench, without a download, and it is real
text: prose, reference and code. One help topic, one built-in module's docstrings or one
source file of the standard library is one document. Left out: third-party packages, tests
(large and repetitive), and character tables (data, not text).

The documents come in the order of a digest of their names, so that a cut by ``max_bytes``
takes a sample of everything instead of the modules from a to c.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from workbench.data.document import Document

SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",  # tables of characters
    "pydoc_data",  # the help topics, read as topics below
}
SKIPPED_PREFIXES = ("_sysconfigdata",)  # this machine's build flags


def python_documents() -> Iterator[Document]:
    """All documents of the default corpus in their fixed order."""
    found = [*_topics(), *_built_in_docstrings(), *_sources()]
    yield from sorted(found, key=lambda d: hashlib.sha256(d.id.encode()).digest())


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship Python without its documentation
        return
    for name, text in sorted(topics.items()):
        yield Document(f"topic/{name}", "documentation", text)


def _built_in_docstrings() -> Iterator[Document]:
    """Docstrings of the modules written in C, whose text is in no source file."""
    for name in sorted(sys.builtin_module_names):
        text = _docstrings_of(name)
        if text:
            yield Document(f"docstrings/{name}", "docstrings", text)


def _docstrings_of(module_name: str) -> str:
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return ""
    parts = [f"{module_name}\n\n{module.__doc__ or ''}"]
    for name, member in sorted(vars(module).items()):
        if not callable(member) or name.startswith("_"):
            continue
        parts.append(_entry(f"{module_name}.{name}", member))
        if inspect.isclass(member):
            parts += [
                _entry(f"{module_name}.{name}.{method}", value)
                for method, value in sorted(vars(member).items())
                if callable(value) and not method.startswith("__")  # boilerplate, repeated
            ]
    return "\n\n".join(part for part in parts if part)


def _entry(name: str, member: object) -> str:
    doc = getattr(member, "__doc__", None)
    return f"{name}\n{doc}" if isinstance(doc, str) and doc.strip() else ""


def _sources() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inner = path.relative_to(root)
        if SKIPPED_FOLDERS.intersection(inner.parts) or inner.name.startswith(SKIPPED_PREFIXES):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # a few files are in other encodings on purpose
        if text.strip():
            yield Document(f"source/{inner.as_posix()}", "source", text)
