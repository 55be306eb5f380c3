"""Throwaway keys: a chain that verifies, private halves for their owner, nothing overwritten."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from leansplit.experiments import credentials
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


def test_what_is_missing_is_added_by_the_same_authority(tmp_path, capsys):
    folder = tmp_path / "keys"
    assert main([str(folder), "--nodes", "1", "--days", "3"]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "superlink.crt").unlink()
    (folder / "superlink.key").unlink()
    assert main([str(folder), "--host", "192.0.2.7", "--nodes", "3", "--add"]) == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    renewed = {"superlink.crt", "superlink.key"}
    assert {name for name in before if before[name] != after[name]} == renewed
    added = {f"node-{i}{end}" for i in (1, 2) for end in (".crt", ".key", "-auth.key", "-auth.pub")}
    assert after.keys() - before.keys() == added
    authority = certificate(folder / "ca.crt")
    verifier = PolicyBuilder().store(Store([authority])).build_server_verifier
    verifier(x509.IPAddress(ip_address("192.0.2.7"))).verify(
        certificate(folder / "superlink.crt"), []
    )
    last = certificate(folder / "node-2.crt").not_valid_after_utc
    assert last == authority.not_valid_after_utc
    assert 2 <= (last - datetime.now(UTC)).days <= 3


def test_nothing_is_written_if_something_is_in_the_way(tmp_path, capsys):
    (tmp_path / "node-1-auth.pub").write_text("mine")
    assert main([str(tmp_path)]) == 2
    assert "node-1-auth.pub is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["node-1-auth.pub"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--days", "-1"], "--days must be from 1 to 3650, got -1"),
        (["--nodes", "0"], "--nodes must be"),
        (["--host", "name:9000"], "'name:9000' is neither a host's name nor an address"),
        (["--add"], "holds no authority that can be used"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(options, message, tmp_path, capsys):
    assert main([str(tmp_path / "keys"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("damage", ["half", "foreign", "ended"])
def test_an_authority_that_is_no_good_is_refused(damage, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "keys"
    assert main([str(folder), "--nodes", "1"]) == 0
    if damage == "half":
        (folder / "ca.key").unlink()
    elif damage == "foreign":
        assert main([str(tmp_path / "other")]) == 0
        (folder / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    else:
        later = datetime.now(UTC) + timedelta(days=31)
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, zone: later)})
        monkeypatch.setattr(credentials.datetime, "datetime", clock)
    before = sorted(path.name for path in folder.iterdir())
    assert main([str(folder), "--nodes", "2", "--add"]) == 2
    reason = {"half": "no authority", "foreign": "are not a pair", "ended": "ended on"}[damage]
    assert reason in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
