"""`doctor` on this machine, and on installations that are broken in one way each."""

import json
from importlib import metadata

import pytest

from agentrl.cli import main
from agentrl.commands import doctor
from agentrl.errors import DISTRIBUTION, pip_install


def by_name(findings):
    return {f.name: f for f in findings}


def test_this_installation_is_whole(capsys, tmp_path):
    assert main(["doctor", "--json", "--runs-dir", str(tmp_path)]) == 0
    out = json.loads(capsys.readouterr().out)
    found = {f["name"]: f for f in out["findings"]}
    assert out["ok"] and not [f for f in out["findings"] if f["level"] == "fail"]
    assert found["torch"]["value"].startswith(metadata.version("torch")[:4])
    assert {"Python", "CPU cores", "threads", "runs", "transformers", "train", "what fits"} <= set(found)
    assert main(["doctor", "--runs-dir", str(tmp_path)]) == 0
    assert "✓ torch" in capsys.readouterr().out


def test_every_extra_of_the_package_says_what_it_is_for():
    extras = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra")
    assert extras
    assert set(extras) <= set(doctor.PURPOSE)
    assert {f.name for f in doctor._extras()} == set(extras)


def test_secrets_are_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    found = list(doctor._variables())
    assert by_name(found)["HF_TOKEN"].value == "set (not shown)"
    assert "hf_abc" not in repr(found)


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have these versions; None: not installed."""
    real = metadata.version

    def put(**pretended):
        def version(name):
            if name in pretended:
                if pretended[name] is None:
                    raise metadata.PackageNotFoundError(name)
                return pretended[name]
            return real(name)

        monkeypatch.setattr(metadata, "version", version)

    return put


def test_a_version_that_does_not_fit_is_broken_and_named(versions, capsys, tmp_path):
    versions(tantivy="0.1.0")
    finding = by_name(doctor._packages())[DISTRIBUTION]
    assert finding.level == "fail" and "tantivy>=" in finding.value and "0.1.0" in finding.value
    assert "-c constraints.txt" in finding.remedy
    assert main(["doctor", "--runs-dir", str(tmp_path)]) == 1
    assert f"✗ {DISTRIBUTION}" in capsys.readouterr().out


def test_missing_packages(versions):
    versions(shtab=None, peft=None)
    assert by_name(doctor._packages())["shtab"].level == "fail"
    extras = by_name(doctor._extras())
    for name in ("train", "dev"):  # dev is made of the others
        assert extras[name].level == "note" and extras[name].value.endswith("missing peft")
    assert extras["train"].remedy == f"only if you want it: {pip_install('train')}"
    assert extras["retriever"].level == "ok" and "installed" in extras["retriever"].value


def test_an_optional_package_that_is_there_but_does_not_load_is_broken(monkeypatch):
    def broken(name):
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert by_name(doctor._packages())["tantivy"].level == "fail"
    monkeypatch.setattr(doctor, "installed", lambda module: module != "tantivy")
    assert "tantivy" not in by_name(doctor._packages())


def test_a_torchvision_of_another_build_is_warned_of(versions):
    versions(torchvision="0.28.0+cu999")
    assert by_name(doctor._torch())["torchvision"].level == "warn"


def test_a_full_disk_and_too_many_threads_are_warned_of(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    runs = by_name(doctor._disk(str(tmp_path / "not" / "yet")))["runs"]
    assert runs.level == "warn" and "free some space" in runs.remedy
    monkeypatch.setattr(doctor, "usable_cores", lambda: 0)
    assert by_name(doctor._torch())["threads"].level == "warn"


def test_container_limits_are_respected(monkeypatch):
    limits = {"/sys/fs/cgroup/cpu.max": "100000 100000", "/sys/fs/cgroup/memory.max": str(2**20)}
    monkeypatch.setattr(doctor, "_read", limits.__getitem__)
    assert doctor.usable_cores() == 1 and doctor.memory_bytes() == 2**20
    monkeypatch.setattr(doctor, "_read", {k: "max" for k in limits}.__getitem__)
    assert doctor.memory_bytes() > 2**28
