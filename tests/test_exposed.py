"""Folders that others could change, or put theirs in the place of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vpipe_cli.onhost.exposed import exposed

STRANGER = 61001


def folder(path: Path, mode: int, user: int | None = None) -> Path:
    path.mkdir()
    path.chmod(mode)
    if user is not None:
        if os.geteuid() != 0:
            pytest.skip("only root gives folders away")
        os.chown(path, user, user)
    return path


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o2775, 0o1777])
def test_private_shared_with_a_group_or_sticky_is_well(tmp_path: Path, mode: int) -> None:
    parent = folder(tmp_path / "parent", mode)
    assert exposed(str(parent)) == ""
    assert exposed(str(parent / "not" / "there")) == ""
    folder(parent / "own", 0o700)
    assert exposed(str(parent / "own" / "runs")) == ""


@pytest.mark.parametrize("mode", [0o777, 0o733, 0o702])
def test_open_to_everyone(tmp_path: Path, mode: int) -> None:
    parent = folder(tmp_path / "parent", mode)
    folder(parent / "own", 0o700)
    for path in (parent, parent / "own", parent / "own" / "deeper", parent / "not-there"):
        assert exposed(str(path)) == f"everyone may write in {parent}"


def test_made_by_somebody_else_in_a_sticky_folder(tmp_path: Path) -> None:
    parent = folder(tmp_path / "parent", 0o1777)
    theirs = folder(parent / "vpipe", 0o700, STRANGER)
    assert exposed(str(theirs / "runs")).startswith(f"{theirs} belongs to user {STRANGER}, in a folder where everyone")


def test_somebody_elses_folder_that_is_not_shared_is_well(tmp_path: Path) -> None:
    """As a home is that a service made, or a disk that is mounted."""
    folder(tmp_path / "home", 0o755, STRANGER)
    assert exposed(str(tmp_path / "home" / "vpipe")) == ""


def test_links_are_followed(tmp_path: Path) -> None:
    shared = folder(tmp_path / "shared", 0o777)
    folder(tmp_path / "sticky", 0o1777)
    for name, target in (
        ("whole", str(shared)),
        ("relative", "shared/x"),
        ("up", "sticky/../shared"),
        ("well", "sticky"),
    ):
        (tmp_path / name).symlink_to(target)
    for name in ("whole", "relative", "up"):
        assert exposed(str(tmp_path / name / "runs")) == f"everyone may write in {shared}", name
    assert exposed(str(tmp_path / "well" / "runs")) == ""
    (tmp_path / "circle").symlink_to("circle")
    assert exposed(str(tmp_path / "circle")) == f"{tmp_path / 'circle'} leads in circles"


def test_a_link_that_somebody_else_made_in_a_sticky_folder(tmp_path: Path) -> None:
    sticky = folder(tmp_path / "sticky", 0o1777)
    (sticky / "vpipe").symlink_to(tmp_path)
    assert exposed(str(sticky / "vpipe" / "runs")) == ""
    if os.geteuid() != 0:
        pytest.skip("only root gives links away")
    os.lchown(sticky / "vpipe", STRANGER, STRANGER)
    assert exposed(str(sticky / "vpipe" / "runs")).startswith(f"{sticky / 'vpipe'} belongs to user {STRANGER}")
