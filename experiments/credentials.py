"""A throwaway certificate authority, and keys for a SuperLink and its SuperNodes.

    python -m leansplit.experiments.credentials /absolute/folder --host superlink.example --nodes 3

For trying and for federations of one owner: whoever holds ``ca.key`` can pose as the SuperLink.
All private keys are ECDSA P-384, unencrypted, readable by their owner only. Nothing is ever
overwritten. ``docs/deployment.md`` says which file goes where.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leansplit.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1")
_DAYS = 30


@dataclass(frozen=True)
class TLSFiles:
    """What a server shows, and what its clients check it by."""

    certificate: Path
    key: Path
    ca: Path

    def arguments(self) -> list[str]:
        """Return the options of ``flower-superlink`` and ``flower-supernode`` that name them."""
        return [
            *("--ssl-certfile", str(self.certificate)),
            *("--ssl-keyfile", str(self.key)),
            *("--ssl-ca-certfile", str(self.ca)),
        ]


@dataclass(frozen=True)
class NodeKey:
    """What a SuperNode proves who it is with; ``public`` is what the SuperLink registers."""

    private: Path
    public: Path


class Authority:
    """A certificate authority of ``days`` days, whose files are in one folder."""

    def __init__(self, folder: Path, *, days: int = _DAYS) -> None:
        """Make it.

        Raises:
            UserError: if the folder holds one.
        """
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP384R1())
        now = datetime.datetime.now(datetime.UTC)
        self._valid = now - datetime.timedelta(minutes=5), now + datetime.timedelta(days=days)
        self._name = _name("leansplit throwaway authority")
        usage = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment"),
                *("data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        )
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
            .sign(self._key, hashes.SHA384())
        )
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "ca.key", _private(self._key), is_private=True)
        _write(folder / "ca.crt", certificate.public_bytes(Encoding.PEM))

    def certify(self, name: str, hosts: Sequence[str]) -> TLSFiles:
        """Write a server's key and its certificate for ``hosts`` (names or addresses).

        Raises:
            UserError: if the files are there.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            self._builder(_name(name), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
            .add_extension(server, critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA384())
        )
        files = TLSFiles(
            self._folder / f"{name}.crt", self._folder / f"{name}.key", self._folder / "ca.crt"
        )
        _write(files.key, _private(key), is_private=True)
        _write(files.certificate, certificate.public_bytes(Encoding.PEM))
        return files

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._valid[0])
            .not_valid_after(self._valid[1])
            .add_extension(identifier, critical=False)
        )


def make_node_key(folder: Path, name: str) -> NodeKey:
    """Write a SuperNode's key pair; the private half never needs to leave the node's machine.

    Raises:
        UserError: if the files are there.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    files = NodeKey(folder / f"{name}-auth.key", folder / f"{name}-auth.pub")
    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _write(files.private, private, is_private=True)
    _write(files.public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return files


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, *, is_private: bool = False) -> None:
    """Write a new file; a private one is never readable by others, not even for a moment."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if is_private else 0o644)
    except FileExistsError:
        raise UserError(f"{path} is there already and is not overwritten") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make an authority, the SuperLink's certificate, and keys of so many SuperNodes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", action="append", help="a name or address of the SuperLink")
    parser.add_argument("--nodes", type=int, default=2, help="SuperNodes (default: 2)")
    parser.add_argument("--days", type=int, default=_DAYS, help=f"validity (default: {_DAYS})")
    given = parser.parse_args(arguments)
    try:
        authority = Authority(given.folder, days=given.days)
        authority.certify("superlink", [*(given.host or []), *LOOPBACK])
        for i in range(given.nodes):
            # Flower's own processes on the node's machine speak TLS among themselves.
            authority.certify(f"node-{i}", LOOPBACK)
            make_node_key(given.folder, f"node-{i}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote the keys of a SuperLink and {given.nodes} SuperNodes into {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
