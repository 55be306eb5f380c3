"""A throwaway certificate authority, and keys for a SuperLink and its SuperNodes.

    python -m leansplit.experiments.credentials /absolute/folder --host superlink.example --nodes 3
    python -m leansplit.experiments.credentials /absolute/folder --nodes 5 --add

The second command makes what is missing, here two nodes more, by the authority that is there. For
trying and for federations of one owner: whoever holds ``ca.key`` can pose as the SuperLink. All
private keys are ECDSA P-384, unencrypted, readable by their owner only. Nothing is overwritten.
``docs/deployment.md`` says which file goes where.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import re
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
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leansplit.errors import UserError, require_positive

LOOPBACK = ("localhost", "127.0.0.1")
_DAYS = 30
_LONGEST_DAYS = 3650
_SUPERLINK = "superlink"
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*", re.IGNORECASE)


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
    """A certificate authority whose files are in one folder.

    Args:
        folder: where ``ca.crt`` and ``ca.key`` are, and what it certifies goes.
        key: its private key.
        certificate: its certificate.
    """

    def __init__(
        self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self._folder, self._key, self._certificate = folder, key, certificate

    @classmethod
    def make(cls, folder: Path, *, days: int = _DAYS) -> Authority:
        """Make one that is good for ``days``, with its files.

        Raises:
            UserError: if the folder holds one.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        usage = dict.fromkeys(
            (
                *("digital_signature", "content_commitment", "key_encipherment"),
                *("data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
            ),
            False,
        )
        name = _name("leansplit throwaway authority")
        now = datetime.datetime.now(datetime.UTC)
        valid = now - datetime.timedelta(minutes=5), now + datetime.timedelta(days=days)
        certificate = (
            _builder(name, name, key, *valid)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.KeyUsage(**usage, key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "ca.key", _private(key), is_private=True)
        _write(folder / "ca.crt", certificate.public_bytes(Encoding.PEM))
        return cls(folder, key, certificate)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read the one in ``folder``.

        Raises:
            UserError: if it is not there, not whole, or at its end.
        """
        try:
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{folder} holds no authority that can be used ({error}); make a new one in "
                "another folder"
            ) from error
        is_pair = key.public_key() == certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_pair:
            raise UserError(f"ca.key and ca.crt in {folder} are not a pair")
        if certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
            raise UserError(
                f"the authority in {folder} ended on {certificate.not_valid_after_utc:%Y-%m-%d}; "
                "make a new one in another folder"
            )
        return cls(folder, key, certificate)

    def certify(self, name: str, hosts: Sequence[str]) -> TLSFiles:
        """Write a server's key and its certificate for ``hosts`` (names or addresses).

        It ends when the authority does.

        Raises:
            UserError: if the files are there, or a host is neither a name nor an address.
        """
        names = [_host(host) for host in hosts]
        key = ec.generate_private_key(ec.SECP384R1())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        certificate = (
            _builder(_name(name), self._certificate.subject, key, *self._valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
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

    @property
    def _valid(self) -> tuple[datetime.datetime, datetime.datetime]:
        return self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc


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


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    first: datetime.datetime,
    last: datetime.datetime,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(last)
        .add_extension(identifier, critical=False)
    )


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
        pass
    if not _DNS_NAME.fullmatch(host):
        raise UserError(
            f"{host!r} is neither a host's name nor an address; give it without a port, such as "
            "superlink.example or 192.0.2.1"
        )
    return x509.DNSName(host)


def make_all(folder: Path, hosts: Sequence[str], nodes: int, days: int) -> None:
    """Make an authority, the SuperLink's certificate, and keys of so many SuperNodes.

    Raises:
        UserError: for bad settings, or if one of the files is there; then nothing is written.
    """
    for host in hosts:
        _host(host)
    for path in (folder / "ca.key", folder / "ca.crt", *_files(folder, nodes)):
        if path.exists():
            raise UserError(
                f"{path} is there already and is not overwritten; --add makes what is missing"
            )
    _certify_all(Authority.make(folder, days=days), folder, hosts, nodes)


def add_missing(folder: Path, hosts: Sequence[str], nodes: int) -> None:
    """Make what :func:`make_all` would have made and is not there, by the folder's authority.

    Raises:
        UserError: if there is no authority, or half of a pair of files is there.
    """
    _certify_all(Authority.load(folder), folder, hosts, nodes)


def _certify_all(authority: Authority, folder: Path, hosts: Sequence[str], nodes: int) -> None:
    if not (folder / f"{_SUPERLINK}.crt").exists():
        authority.certify(_SUPERLINK, [*hosts, *LOOPBACK])
    for name in map(_node, range(nodes)):
        if not (folder / f"{name}.crt").exists():
            # Flower's own processes on the node's machine speak TLS among themselves.
            authority.certify(name, LOOPBACK)
        if not (folder / f"{name}-auth.pub").exists():
            make_node_key(folder, name)


def _files(folder: Path, nodes: int) -> list[Path]:
    names = [_SUPERLINK, *map(_node, range(nodes))]
    pairs = [folder / f"{name}.{end}" for name in names for end in ("key", "crt")]
    return pairs + [
        folder / f"{_node(i)}-auth.{end}" for i in range(nodes) for end in ("key", "pub")
    ]


def _node(index: int) -> str:
    return f"node-{index}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command; return 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--host", action="append", default=[], help="a name or address of the SuperLink"
    )
    parser.add_argument("--nodes", type=int, default=2, help="SuperNodes in all (default: 2)")
    parser.add_argument("--days", type=int, default=_DAYS, help=f"validity (default: {_DAYS})")
    parser.add_argument(
        "--add", action="store_true", help="make what is missing, by the authority in the folder"
    )
    given = parser.parse_args(arguments)
    try:
        require_positive("--nodes", given.nodes)
        if not 1 <= given.days <= _LONGEST_DAYS:
            raise UserError(f"--days must be from 1 to {_LONGEST_DAYS}, got {given.days}")
        if given.add:
            add_missing(given.folder, given.host, given.nodes)
        else:
            make_all(given.folder, given.host, given.nodes, given.days)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.folder} has the keys of a SuperLink and {given.nodes} SuperNodes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
