"""Throwaway keys: a chain that verifies, private halves for their owner, nothing overwritten."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from leansplit.experiments.credentials import main


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_keys_of_a_federation(tmp_path, capsys):
    folder = tmp_path / "keys"
    command = [str(folder), "--host", "superlink.example", "--nodes", "2"]
    assert main(command) == 0
    policy = PolicyBuilder().store(Store([certificate(folder / "ca.crt")]))
    verifier = policy.build_server_verifier(x509.DNSName("superlink.example"))
    verifier.verify(certificate(folder / "superlink.crt"), [])
    with pytest.raises(VerificationError):
        verifier.verify(certificate(folder / "node-0.crt"), [])  # good for its own machine only
    private = load_ssh_private_key((folder / "node-1-auth.key").read_bytes(), None)
    public = load_ssh_public_key((folder / "node-1-auth.pub").read_bytes())
    assert private.public_key() == public
    assert private.key_size == 384
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.glob("*.key")}
    assert len(modes) == 6
    assert set(modes.values()) == {0o600}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(command) == 2
    assert "ca.key is there already and is not overwritten" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
