"""A coordinator's certificate authority, its server certificate, and a key for each client."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 60
"""Validity of a server's certificate: made anew at every start, and its key stays with the run."""
AUTHORITY_DAYS = 3650
"""Of an authority: devices hold it, so it outlives their keys."""
SKEW = timedelta(days=1)
"""A board without a clock of its own may be behind."""


@dataclass(frozen=True)
class Authority:
    """What signs server certificates: a certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Pair:
    """A certificate or public key, and its private key."""

    public: bytes
    private: bytes


def make_authority(now: datetime | None = None) -> Authority:
    """A fresh certificate authority."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("ticketlab authority")
    built = (
        _certificate(name, name, key.public_key(), AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Authority(built.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM), _pem(key))


def server_certificate(authority: Authority, hosts: Sequence[str], now: datetime | None = None) -> Pair:
    """A certificate for the addresses that clients type: names, or numbers; as PEM."""
    key = ec.generate_private_key(ec.SECP384R1())
    signer = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.certificate).subject
    built = (
        _certificate(_name("ticketlab coordinator"), issuer, key.public_key(), DAYS, now)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        # Python 3.13 refuses certificates that leave out what RFC 5280 asks for
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return Pair(built.sign(signer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM), _pem(key))


def valid_until(certificate: bytes) -> datetime:
    """When a certificate ends."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def client_key() -> Pair:
    """A key pair of a client, in OpenSSH's form, as Flower's node authentication wants it."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return Pair(public, private)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int, now: datetime | None
) -> x509.CertificateBuilder:
    begins = (now or datetime.now(UTC)) - SKEW
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begins, begins + timedelta(days))


def _usage(*allowed: str) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in allowed for name in names})


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
