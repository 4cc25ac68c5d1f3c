"""A Sigstore on this machine: certificate authority, certificate log and signature log, with real keys and real signatures.

It follows what the public services document: Fulcio's certificates with an embedded SCT (RFC 6962), Rekor's entries of kind
`dsse` 0.0.1 with an inclusion proof in a tree of one leaf, a signed checkpoint and a signed entry timestamp.
"""

import base64
import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ISSUER = "https://issuer.example"
ISSUER_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
SCT_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Local Sigstore")])


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _signed(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def _octets(data: bytes) -> bytes:
    """DER of an OCTET STRING of fewer than 65,536 bytes."""
    size = len(data)
    length = bytes([size]) if size < 128 else b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")
    return b"\x04" + length + data


@dataclass
class Sigstore:
    """Its three keys, and how many entries its log has."""

    authority: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    certificates: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    log: ec.EllipticCurvePrivateKey = field(default_factory=_key)
    url: str = "http://127.0.0.1"

    def root(self) -> x509.Certificate:
        """The authority's own certificate."""
        now = datetime.now(UTC)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        return (
            x509.CertificateBuilder()
            .subject_name(NAME)
            .issuer_name(NAME)
            .public_key(self.authority.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.authority.public_key()), critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def certificate(self, key: ec.EllipticCurvePublicKey, identity: str) -> x509.Certificate:
        """A certificate of ten minutes for an e-mail address, with the log's promise in it."""
        now = datetime.now(UTC)
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(NAME)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(minutes=9))
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()), critical=False)
            .add_extension(x509.UnrecognizedExtension(ISSUER_EXTENSION, ISSUER.encode()), critical=False)
        )
        body = builder.sign(self.authority, hashes.SHA256()).tbs_certificate_bytes
        sct = _octets(self._promise(body, int(now.timestamp() * 1000)))
        return builder.add_extension(x509.UnrecognizedExtension(SCT_EXTENSION, sct), critical=False).sign(
            self.authority, hashes.SHA256()
        )

    def _promise(self, body: bytes, time: int) -> bytes:
        """A list of one signed certificate timestamp (RFC 6962, sections 3.2 and 3.3)."""
        issuer = hashlib.sha256(_der(self.authority)).digest()
        told = struct.pack("!BBQH", 0, 0, time, 1) + issuer + len(body).to_bytes(3, "big") + body + b"\0\0"
        signature = _signed(self.certificates, told)
        log = hashlib.sha256(_der(self.certificates)).digest()
        sct = b"\0" + log + struct.pack("!QH", time, 0) + struct.pack("!BBH", 4, 3, len(signature)) + signature
        return struct.pack("!HH", len(sct) + 2, len(sct)) + sct

    def entry(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """What the log answers to a proposed entry."""
        content = json.loads(proposed["spec"]["proposedContent"]["envelope"])
        verifiers = proposed["spec"]["proposedContent"]["verifiers"]
        payload = base64.b64decode(content["payload"])
        body = rfc8785.dumps(
            {
                "kind": "dsse",
                "apiVersion": "0.0.1",
                "spec": {
                    "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
                    "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(json.dumps(content).encode()).hexdigest()},
                    "signatures": [
                        {"signature": one["sig"], "verifier": verifier}
                        for one, verifier in zip(content["signatures"], verifiers, strict=True)
                    ],
                },
            }
        )
        log, leaf = hashlib.sha256(_der(self.log)).digest(), hashlib.sha256(b"\0" + body).digest()
        note = f"local - 1\n1\n{_b64(leaf)}\n"
        checkpoint = f"{note}\n\u2014 local {_b64(log[:4] + _signed(self.log, note.encode()))}\n"
        time = int(datetime.now(UTC).timestamp())
        told = rfc8785.dumps({"body": _b64(body), "integratedTime": time, "logID": log.hex(), "logIndex": 0})
        return {
            "0" * 64: {
                "body": _b64(body),
                "integratedTime": time,
                "logID": log.hex(),
                "logIndex": 0,
                "verification": {
                    "signedEntryTimestamp": _b64(_signed(self.log, told)),
                    "inclusionProof": {
                        "checkpoint": checkpoint,
                        "hashes": [],
                        "logIndex": 0,
                        "rootHash": leaf.hex(),
                        "treeSize": 1,
                    },
                },
            }
        }

    def trusted_root(self) -> dict[str, Any]:
        """What verifiers trust."""
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log(self.log)],
            "ctlogs": [self._log(self.certificates)],
            "certificateAuthorities": [
                {
                    "subject": {"organization": "local", "commonName": "Local Sigstore"},
                    "uri": self.url,
                    "certChain": {"certificates": [{"rawBytes": _b64(self.root().public_bytes(Encoding.DER))}]},
                    "validFor": {"start": "2024-01-01T00:00:00Z"},
                }
            ],
            "timestampAuthorities": [],
        }

    def configuration(self) -> dict[str, Any]:
        """What signers need: where the services are, and what to trust."""
        service = {"url": self.url, "majorApiVersion": 1, "validFor": {"start": "2024-01-01T00:00:00Z"}, "operator": "local"}
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root(),
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [service],
                "rekorTlogUrls": [service],
                "tsaUrls": [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }

    def _log(self, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
        return {
            "baseUrl": self.url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": _b64(_der(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": "2024-01-01T00:00:00Z"},
            },
            "logId": {"keyId": _b64(hashlib.sha256(_der(key)).digest())},
        }


def token(identity: str) -> str:
    """An OpenID Connect token as an issuer gives it; whether it is signed is for the authority to look at."""
    now = int(datetime.now(UTC).timestamp())
    claims = {"aud": "sigstore", "sub": identity, "email": identity, "iss": ISSUER, "iat": now, "nbf": now, "exp": now + 600}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({"alg": "none"}, claims)]
    return f"{parts[0]}.{parts[1]}."


@contextmanager
def served(sigstore: Sigstore) -> Iterator[Sigstore]:
    """Its services over HTTP on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/v2/signingCert":
                claims = self.headers["Authorization"].split(".")[1]
                identity = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
                request = x509.load_pem_x509_csr(base64.b64decode(asked["certificateSigningRequest"]))
                chain = [sigstore.certificate(request.public_key(), identity), sigstore.root()]
                pem = [one.public_bytes(Encoding.PEM).decode() for one in chain]
                self.answer(200, {"signedCertificateEmbeddedSct": {"chain": {"certificates": pem}}})
            elif self.path == "/api/v1/log/entries":
                self.answer(201, sigstore.entry(asked))
            else:
                self.answer(404, {})

        def answer(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sigstore.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield sigstore
    finally:
        server.shutdown()
        server.server_close()
