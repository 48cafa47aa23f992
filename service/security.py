"""TLS credentials of the gRPC ports, from PEM files."""

from __future__ import annotations

from pathlib import Path

import grpc

from phosphene.errors import SettingError
from service.settings import SecuritySettings

__all__ = ["server_credentials"]


def server_credentials(security: SecuritySettings) -> grpc.ServerCredentials | None:
    """What a port shows its callers and asks of them; None for plaintext.

    Raises:
        SettingError: a file cannot be read, or holds no PEM.
    """
    if security.certificate is None or security.key is None:
        return None
    certificate = _pem(security.certificate, "PHOSPHENE_TLS_CERTIFICATE", "CERTIFICATE")
    key = _pem(security.key, "PHOSPHENE_TLS_KEY", "PRIVATE KEY")
    if security.client_ca is None:
        return grpc.ssl_server_credentials([(key, certificate)])
    authorities = _pem(security.client_ca, "PHOSPHENE_TLS_CLIENT_CA", "CERTIFICATE")
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=authorities, require_client_auth=True)


def _pem(path: Path, variable: str, label: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise SettingError(
            f"{variable} is {str(path)!r}, which cannot be read ({cause.strerror}); let the user who runs "
            "the service read it, or name another file"
        ) from cause
    if b"-----BEGIN " not in data or label.encode() not in data:
        raise SettingError(
            f"{variable} is {str(path)!r}, which holds no PEM block of a {label.lower()}; name the file that does"
        )
    return data
