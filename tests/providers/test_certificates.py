"""The certificates of this machine, read while a library is imported."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from mesh.providers import certificates, lazy_sdk
from mesh.providers.certificates import Certificates

pytest.importorskip("openai")
pytest.importorskip("httpx2")


def test_the_client_proves_its_servers_as_the_library_would() -> None:
    """If a client is made with certificates read before, then it is the library's own, and checks servers."""
    library = lazy_sdk.client_module("openai")
    client = Certificates().client(library)
    context = client._transport._pool._ssl_context
    assert isinstance(client, type(library.AsyncOpenAI(api_key="k", base_url="https://h")._client).__base__)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert client.follow_redirects
    assert len(context.get_ca_certs()) == len(library.AsyncOpenAI(
        api_key="k", base_url="https://h")._client._transport._pool._ssl_context.get_ca_certs())


def test_certificates_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file of the certificates is not there, then whoever makes a client is told so."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(FileNotFoundError):
        Certificates().client(lazy_sdk.client_module("openai"))


def test_without_the_http_library_the_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a library is built on another HTTP library, then it makes its client itself."""
    library = lazy_sdk.client_module("openai")
    monkeypatch.setattr(certificates, "HTTP", "no_such_http")
    assert Certificates().client(library) is None
