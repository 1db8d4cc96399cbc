"""What a run records of the code it was made with."""

import shutil
import subprocess

import pytest

from hvd_llm import provenance


def test_only_changes_of_the_package_make_the_code_dirty(tmp_path, monkeypatch):
    if not shutil.which("git"):
        pytest.skip("needs git")
    package = tmp_path / "package"
    package.mkdir()
    (package / "code.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(package / "code.py"))
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert provenance.git()["dirty"] is False
    (tmp_path / "my-text").touch()
    assert provenance.git()["dirty"] is False
    (package / "new.py").touch()
    assert provenance.git()["dirty"] is True
