"""Files with Content Credentials, signed by a certificate authority made here."""

import datetime as dt
import functools
import io
import json
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SIGNER = "A Signer"
AUTHORITY = "An Authority"


@functools.cache
def _chain() -> tuple[str, str, str]:
    """PEM of the signer's certificate, of its authority's, and of the signer's key."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate(AUTHORITY, AUTHORITY, authority_key, authority_key, is_ca=True)
    signer = _certificate(SIGNER, AUTHORITY, key, authority_key, is_ca=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return signer, authority, private.decode()


def authority() -> str:
    """PEM of the certificate by which the signer is trusted."""
    return _chain()[1]


@functools.cache
def stranger() -> str:
    """PEM of an authority that has signed nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _certificate("Stranger", "Stranger", key, key, is_ca=True)


def created(source_type: str | None = "trainedAlgorithmicMedia", **more: Any) -> dict[str, Any]:
    """The action by which an asset begins."""
    source = {"digitalSourceType": SOURCE_TYPES + source_type} if source_type else {}
    return {"action": "c2pa.created"} | source | more


def signed(
    image: bytes,
    mime: str,
    actions: list[dict[str, Any]] | None = None,
    ingredients: list[tuple[str, bytes]] | None = None,
    remote_url: str = "",
    embed: bool = True,
) -> bytes:
    """An image with Content Credentials.

    Args:
        image: the file.
        mime: its type.
        actions: as C2PA writes them; by default that an AI generated it.
        ingredients: relationship and file of each, of the same type.
        remote_url: where the manifest is said to be, too.
        embed: whether it is in the file.
    """
    definition = {
        "claim_generator_info": [{"name": "nsnet benchmarks", "version": "1"}],
        "title": "a name that nobody is told",
        "assertions": [
            {
                "label": "c2pa.actions.v2",
                "data": {"actions": [created()] if actions is None else actions},
            }
        ],
    }
    certificates, authority_pem, key = _chain()
    info = c2pa.C2paSignerInfo(
        alg=b"es256",
        sign_cert=(certificates + authority_pem).encode(),
        private_key=key.encode(),
        ta_url=None,
    )
    target = io.BytesIO()
    plain = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    with (
        c2pa.Builder(json.dumps(definition), context=plain) as builder,
        c2pa.Signer.from_info(info) as one,
    ):
        for relationship, ingredient in ingredients or []:
            described = json.dumps({"title": "another name", "relationship": relationship})
            builder.add_ingredient(described, mime, io.BytesIO(ingredient))
        if remote_url:
            builder.set_remote_url(remote_url)
        if not embed:
            builder.set_no_embed()
        builder.sign(one, mime, io.BytesIO(image), target)
    return target.getvalue()


def _certificate(
    name: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
) -> str:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=is_ca,
                crl_sign=is_ca,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if not is_ca:
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True
        )
    made = builder.sign(issuer_key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"Organisation of {common}"),
        ]
    )
