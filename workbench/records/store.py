"""A place that runs of several machines share: a folder or an object store, by its URL.

``WORKBENCH_STORE`` names it: ``s3://bucket/prefix``, ``file:///mnt/shared/pilots``, a path. fsspec
speaks to it, so credentials and endpoints are the usual ones of each kind (``AWS_ENDPOINT_URL``,
``AWS_PROFILE``, ``FSSPEC_S3_KEY``). Files are put there whole under names that no other writer
uses. What two writers may want at once is made by :meth:`RunStore.create`: of two that create one
name the first wins, the other is given what it wrote, and nothing is ever overwritten.

A store that does not answer is waited for, ``WAIT_S`` in all. What it refuses (credentials, a
bucket that is not there) is said at once.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from workbench.errors import ConfigError, StageError, WorkbenchError, reason_of
from workbench.paths import expanded, runs_root

VARIABLE = "WORKBENCH_STORE"
WAIT_S, FIRST_PAUSE_S = 60.0, 1.0
MARK, MARKED = "store.json", b'{"format": 1}\n'
"""Created before anything else: it proves that a name is created once, and says the layout."""
WRONG = {
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "InvalidRegionError",
    "ParamValidationError", "SSOTokenLoadError", "UnauthorizedSSOTokenError",
}  # fmt: skip
"""botocore's errors that no waiting cures."""
REFUSED = {errno.EINVAL, errno.ENOSYS, getattr(errno, "EREMCHG", errno.EINVAL)}
"""What s3fs makes of answers such as InvalidBucketName, NotImplemented and PermanentRedirect."""
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

Answer = TypeVar("Answer")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class RunStore:
    """Files below ``url`` by name (``runs/chat/20261129-120000-abcdef/run.json``).

    say: is told what is waited for. Every method raises ConfigError for what the store refuses and
    StageError where it does not answer for ``WAIT_S``.
    """

    def __init__(self, url: str, say: Callable[[str], None] = _say) -> None:
        """Raises ConfigError for a URL that nothing here can read, or a folder that is not there;
        asks nothing of the store itself yet."""
        self.url, self.say = url.rstrip("/"), say
        self._fs, self._root = _file_system(self.url)
        self._is_folder = "file" in _protocols(self._fs)

    def check(self) -> None:
        """ConfigError unless files can be written here, and a name is created only once."""
        marked = self.create(MARK, MARKED)
        if marked != MARKED:
            raise ConfigError(
                f"the store {self.url} was laid out by another version of the workbench: {MARK} "
                f"holds {marked[:80]!r}",
                allowed=MARKED.decode().strip(),
                next_step=f"use that version, or set {VARIABLE} to another place",
            )
        try:
            self._answered("creating a file twice", lambda: self._create_new(MARK, MARKED))
        except FileExistsError:
            return
        raise ConfigError(
            f"a file that was to be created once is overwritten by the store {self.url}",
            allowed="conditional writes (S3: If-None-Match), else two writers spoil each other's",
            next_step=f"set {VARIABLE} to a store that has them",
        )

    def names(self, under: str) -> list[str]:
        """Of all files below ``under``, sorted; none where nothing is there."""
        found = self._answered(f"listing {under}", lambda: self._fs.find(self._at(under)))
        return sorted(str(path)[len(self._root) + 1 :] for path in found)

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""

        def read() -> bytes | None:
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

        return self._answered(f"reading {name}", read)

    def create(self, name: str, content: bytes) -> bytes:
        """What ``name`` holds from now on: ``content``, or what another writer put there first."""
        try:
            self._answered(f"creating {name}", lambda: self._create_new(name, content))
            return content
        except FileExistsError:  # another's; or ours, where only the answer to it was lost
            return self.read(name) or content

    def put(self, file: Path, name: str) -> None:
        """Copy a file there, under a name that is this writer's alone."""
        self._answered(f"putting {name}", lambda: self._fs.put_file(str(file), self._at(name)))

    def get(self, name: str, file: Path) -> None:
        """Copy a file from there."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._answered(f"getting {name}", lambda: self._fs.get_file(self._at(name), str(file)))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _create_new(self, name: str, content: bytes) -> None:
        """Raises FileExistsError where ``name`` is there already, whoever made it."""
        if self._is_folder:
            _create_on_disk(Path(self._at(name)), content)
        else:
            self._fs.pipe_file(self._at(name), content, mode="create")

    def _answered(self, what: str, ask: Callable[[], Answer]) -> Answer:
        """What ``ask`` returns, asked again while the store does not answer."""
        began, pause = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                if self._is_folder and not Path(self._root).is_dir():
                    raise OSError(f"{self._root} is gone")
                return ask()
            except (WorkbenchError, FileExistsError):
                raise
            except Exception as error:
                if _is_refusal(error):
                    raise ConfigError(
                        f"the store {self.url} refuses {what}: {reason_of(error)}",
                        allowed="a bucket or folder that exists, and credentials that may read and "
                        "write there",
                        next_step="see to them; what is finished is kept here, and the same "
                        "command goes on",
                    ) from error
                left = WAIT_S - (time.monotonic() - began)
                if left <= 0:
                    raise StageError(
                        f"the store {self.url} did not answer for {WAIT_S:g} s, {what}: "
                        f"{reason_of(error)}",
                        allowed="a store that can be reached",
                        next_step="what is finished is kept here: the same command goes on and "
                        f"publishes it once the store answers, or without {VARIABLE}",
                    ) from error
                self.say(
                    f"waiting for the store {self.url}, {left:.0f} s at most: {reason_of(error)}"
                )
                time.sleep(min(pause, left))
                pause *= 2


def store_here(say: Callable[[str], None] | None = None) -> RunStore | None:
    """The store that ``WORKBENCH_STORE`` names; None where it names none.

    say: is told what is waited for from now on. Raises ConfigError as :class:`RunStore` does.
    """
    url = os.environ.get(VARIABLE)
    if not url:
        return None
    store = _opened(url, os.getpid())
    if say:
        store.say = say
    return store


def places_of_runs() -> dict[str, str]:
    """Environment of a run that another process or node is to do: where runs lie, and the store."""
    store = os.environ.get(VARIABLE)
    return {"WORKBENCH_RUNS": str(runs_root())} | ({VARIABLE: store} if store else {})


@functools.lru_cache(maxsize=4)
def _opened(url: str, pid: int) -> RunStore:
    """pid: what speaks to an object store is not carried over a fork."""
    return RunStore(url)


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for ``url`` and the place in it."""
    import fsspec

    path = None if "://" in url else expanded(Path(url), f"{VARIABLE}: ")
    if path and not path.is_absolute():  # kernels and tasks of Ray work in other folders
        raise ConfigError(
            f"the store {url}: a relative path",
            allowed="s3://bucket/prefix, file:///folder, an absolute path",
            next_step=f"write it out: {path.resolve()}",
        )
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(("s3://", "s3a://")):  # the waiting is done here alone
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
    if path or url.startswith(("file://", "local://")):
        options["auto_mkdir"] = True
    try:
        fs, root = fsspec.core.url_to_fs(str(path or url), **options)
    except (ImportError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the store {url}: {reason_of(error)}",
            allowed="s3://bucket/prefix, file:///folder, a folder's path, or another URL of fsspec",
            next_step="for s3:// install the extra: pip install -c constraints.txt -e .[store]",
        ) from error
    protocols = _protocols(fs)
    if "file" in protocols:
        if not Path(root).is_dir():
            raise ConfigError(
                f"the store {url}: there is no folder {root}",
                allowed="a folder that exists: one made here might lie below a disk that is "
                "not mounted",
                next_step=f"mkdir -p {root}, once it is mounted",
            )
    elif "mode" not in inspect.signature(getattr(fs, "_pipe_file", lambda: None)).parameters:
        raise ConfigError(
            f"the store {url}: what fsspec has for {protocols[0]}:// cannot create a file once",
            allowed="s3://, gs://, or a folder",
            next_step=f"set {VARIABLE} to one of them",
        )
    return fs, root.rstrip("/")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _create_on_disk(path: Path, content: bytes) -> None:
    """Whole or not at all: a link to a file that is written and synced fails where there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise ConfigError(
                f"{path.parent}: its file system has no hard links ({error.strerror}), by which a "
                "file is created only once",
                allowed="a local disk, NFS, or an object store by its own URL",
                next_step=f"set {VARIABLE} to one of them",
            ) from error
    finally:
        partial.unlink(missing_ok=True)


def _is_refusal(error: Exception) -> bool:
    """Whether the store, or what speaks to it, says no; else it did not answer."""
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return True
    if isinstance(error, OSError) and error.errno in REFUSED:
        return True
    return type(error).__name__ in WRONG
