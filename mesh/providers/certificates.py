"""The certificates of this machine, by which a server is proven.

Reading them takes OpenSSL 50 to 100 ms of CPU, outside of the interpreter. An API's library does it when its
client is made, after all of its import; here it is begun as soon as the HTTP library below it is there.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from types import ModuleType
from typing import Any

#: What the libraries of the APIs are built on.
HTTP = "httpx2"


class Certificates:
    """Read by a thread from now on; as the HTTP library does it, whose settings (``SSL_CERT_FILE``) hold."""

    def __init__(self) -> None:
        self._context: Future[Any] | None = None
        try:
            http = import_module(HTTP)
        except ModuleNotFoundError:
            return  # who needs it says so
        beside = ThreadPoolExecutor(1, "certificates")
        self._context = beside.submit(http.create_ssl_context)
        beside.shutdown(wait=False)

    def client(self, library: ModuleType) -> Any:
        """An HTTP client as the library would make it, but with these certificates; waits for them. None when
        the library has no such client: then it makes one alone.

        Raises:
            OSError: the certificates cannot be read.
        """
        base = import_module(f"{library.__package__}._base_client")
        made = getattr(base, "DefaultAsyncHttpxClient", None)
        if made is None or self._context is None or getattr(base, HTTP, None) is None:
            return None
        return made(verify=self._context.result())


__all__ = ["HTTP", "Certificates"]
