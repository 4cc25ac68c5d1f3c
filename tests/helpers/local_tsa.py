"""A time-stamp authority on this machine: `openssl ts`, with certificates made for it."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CONFIGURATION = """
[tsa]
default_tsa = local
[local]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
{certs}
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = {digests}
accuracy = secs:1
ess_cert_id_alg = sha256
"""


@dataclass(frozen=True)
class Tsa:
    """An authority in a folder.

    Attributes:
        folder: Its files; `root.pem` is what verifiers trust.
        chain: Whether its replies carry the intermediate and the root besides its own certificate.
        digests: Which it takes.
    """

    folder: Path
    chain: bool = True
    digests: str = "sha256, sha512"

    @property
    def root(self) -> Path:
        """The root certificate."""
        return self.folder / "root.pem"

    def reply(self, query: bytes) -> bytes:
        """Its answer to a query."""
        certs = f"certs = {self.folder}/chain.pem" if self.chain else ""
        configuration, asked = self.folder / "tsa.cnf", self.folder / "query.tsq"
        configuration.write_text(CONFIGURATION.format(folder=self.folder, certs=certs, digests=self.digests))
        asked.write_bytes(query)
        command = ["openssl", "ts", "-reply", "-config", configuration, "-queryfile", asked]
        answer = self.folder / "reply.tsr"
        subprocess.run([*command, "-out", answer], check=True, capture_output=True)
        return answer.read_bytes()


def make(
    folder: Path,
    name: str = "TSA",
    *,
    valid: tuple[datetime, datetime] | None = None,
    direct: bool = False,
    chain: bool = True,
) -> Tsa:
    """Makes an authority: a root, an intermediate and its own certificate, or (direct) the root and its own."""
    folder.mkdir(parents=True)
    now = datetime.now(UTC)
    root_key, middle_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    long = (now - timedelta(days=1), now + timedelta(days=3650))
    root = _certificate(f"{name} root", root_key, f"{name} root", root_key, long, None)
    middle = _certificate(f"{name} intermediate", middle_key, f"{name} root", root_key, long, None)
    above = (f"{name} root", root_key) if direct else (f"{name} intermediate", middle_key)
    own = _certificate(name, key, *above, valid or long, ExtendedKeyUsageOID.TIME_STAMPING)
    (folder / "root.pem").write_bytes(root)
    (folder / "chain.pem").write_bytes(root if direct else middle + root)
    (folder / "tsa.pem").write_bytes(own)
    (folder / "tsa.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "serial").write_text("01\n")
    return Tsa(folder, chain=chain)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    valid: tuple[datetime, datetime],
    purpose: x509.ObjectIdentifier | None,
) -> bytes:
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.BasicConstraints(ca=purpose is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(purpose is not None, False, False, False, False, purpose is None, False, False, False), critical=True
        )
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


@contextmanager
def served(tsa: Tsa) -> Iterator[str]:
    """The authority over HTTP on this machine; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["Content-Length"]))
            right = self.headers["Content-Type"] == "application/timestamp-query"
            body = tsa.reply(query) if right else b"what?"
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/tsr"
    finally:
        server.shutdown()
        server.server_close()
