"""How a server meets its clients: certificate, key, longest body and log."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import ConfigError, reason_of
from workbench.paths import shown
from workbench.serve.log import LogForm


@dataclass(frozen=True)
class FrontOptions:
    """certificate, certificate_key: files in PEM for HTTPS; the key may stand in the certificate's.
    api_key_env: the environment variable with the key that clients must send. max_body_bytes: of a
    request; None takes what its context needs. log: the form of its lines."""

    certificate: str | None = None
    certificate_key: str | None = None
    api_key_env: str | None = None
    max_body_bytes: int | None = None
    log: LogForm = "text"

    @property
    def scheme(self) -> str:
        return "https" if self.certificate else "http"

    def check(self) -> None:
        """Raises ConfigError for what is no certificate with its key, and a key that is not set."""
        self.api_key()
        if self.certificate_key and not self.certificate:
            raise ConfigError(
                f"--ssl-keyfile {self.certificate_key} without a certificate",
                next_step="give --ssl-certfile too",
            )
        if not self.certificate:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = " and ".join(shown(Path(each)) for each in self._pair() if each)
        try:
            context.load_cert_chain(*self._pair(), password="")
        except (OSError, ValueError) as error:  # of ssl are OSErrors too
            raise ConfigError(
                f"{pair} cannot be used for HTTPS: {reason_of(error)}",
                allowed="a certificate (with its chain) and the private key that belongs to it, in "
                "PEM; no passphrase",
                next_step="see that the files are readable and fit each other",
            ) from None

    def api_key(self) -> str | None:
        """What clients must send; None asks for nothing. Raises ConfigError where it is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise ConfigError(
                f"--api-key {self.api_key_env}: the environment has no such variable with a key",
                allowed="the NAME of an environment variable with one line of plain text: a key in "
                "a command line is seen by everybody on the machine",
                next_step=f"export {self.api_key_env}=..., and start again",
            )
        return key

    def _pair(self) -> tuple[str, str | None]:
        assert self.certificate is not None
        return self.certificate, self.certificate_key


DEFAULT_FRONT = FrontOptions()
