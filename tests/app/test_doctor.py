"""The doctor tells what is there, what is not, and the mend."""

from __future__ import annotations

import shutil

from packaging.requirements import Requirement

from audiolm_utils.app import cli, doctor


def test_report_has_a_line_for_each_part(empty_cache, capsys):
    status = cli.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:27].strip() for line in lines] == [
        "python", "packages", "accelerator", "memory", "cache", "audio sources", "trained models", "web demo",
        "browser", "java", "gpu extra",
    ]  # fmt: skip
    assert status == int(any(line.startswith("MISSING") for line in lines))


def test_a_missing_part_says_how_to_mend_it():
    assert str(doctor.Check("cache", False, "full", "make room")) == "MISSING  cache             full; make room"
    assert str(doctor.Check("gpu", False, "none", "fine", required=False)).startswith("absent ")
    assert "make room" not in str(doctor.Check("cache", True, "empty", "make room"))


def test_requirements_are_compared_with_what_is_installed():
    assert doctor.unmet(Requirement("numpy>=1")) is None
    assert "is outside <1" in doctor.unmet(Requirement("numpy<1"))
    assert doctor.unmet(Requirement("no-such-package-here")) == "no-such-package-here is not installed"


def test_no_apt_is_reported_and_not_fatal(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    check = doctor.debian_sources()
    assert not check.ok and not check.required and "apt-get" in check.detail


def test_a_full_disk_is_fatal(monkeypatch, empty_cache):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    check = doctor.cache()
    assert not check.ok and check.required and "AUDIOLM_CACHE" in str(check)


def test_what_is_absent_without_being_needed_says_what_it_costs(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    for check, cost in ((doctor.browser(), "tests are skipped"), (doctor.java(), "SPICE")):
        assert not check.ok and not check.required and cost in str(check)


def test_the_shipped_models_are_named():
    assert "pocket-quick" in doctor.models().detail
