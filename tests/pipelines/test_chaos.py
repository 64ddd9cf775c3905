"""Builds under faults give the same bits as an undisturbed one, and leave nothing behind."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.chaos.command import Build, Chaos, run
from pipelines.chaos.faults import KINDS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # tests of builds kill their drivers, too
@pytest.mark.faults
def test_a_killed_driver_changes_no_bit(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path / "out", workers=0, rows=2000)
    chaos.prepare()
    chaos.quiet_seconds = 0.0  # so that it is killed as soon as it has begun
    assert chaos.build(["driver killed"]) == []
    assert [(build.faults, build.resumes, build.sound) for build in chaos.builds] == [(["driver killed"], 1, True)]
    chaos.write()
    assert json.loads((tmp_path / "out" / "chaos.json").read_text(encoding="utf-8"))["n_faults"] == 1


@pytest.mark.slow
@pytest.mark.faults
def test_five_kinds_of_faults_change_no_bit(tmp_path: Path) -> None:
    chaos = run(Chaos(tmp_path, rows=4000), faults=10)
    assert [build for build in chaos.builds if not build.sound] == []
    assert {kind for build in chaos.builds for kind in build.faults} == {*KINDS}


def test_what_is_wrong_is_counted(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path)
    chaos.builds = [
        Build(faults=["driver killed", "disk full"], resumes=2, equal=True),
        Build(faults=["disk full"], resumes=1, equal=True, orphans=["17 python"], leftovers=["a", "b"]),
    ]
    lines = {line[:16].strip(): line[16:].split() for line in chaos.table().splitlines()}
    assert lines["driver killed"] == ["1", "1", "2", "1", "0", "0"]
    assert lines["disk full"] == ["2", "2", "3", "2", "1", "2"]
    assert lines["all"] == ["3", "2", "3", "2", "1", "2"]
    assert [build.sound for build in chaos.builds] == [True, False]


def test_a_flaky_store_fails_by_errors_that_may_pass(tmp_path: Path) -> None:
    script = f"""
import os
from pipelines.chaos.driver import make_store_flaky
make_store_flaky(0.5, 3)
fd = os.open({str(tmp_path / "file")!r}, os.O_WRONLY | os.O_CREAT)
failed = 0
for _ in range(200):
    try:
        os.write(fd, b"x")
    except OSError as error:
        assert error.errno == {errno.EIO}
        failed += 1
print(failed, os.fstat(fd).st_size)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    failed, size = map(int, done.stdout.split())
    assert failed + size == 200
    assert 60 < failed < 140


def test_a_disk_that_is_full_stays_as_full(tmp_path: Path) -> None:
    (tmp_path / "full").write_text("4000", encoding="utf-8")
    script = f"""
import resource
from pathlib import Path
from pipelines.chaos.driver import limit_file_size
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
limit_file_size(Path({str(tmp_path / "full")!r}))
print(resource.getrlimit(resource.RLIMIT_FSIZE))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("(500, 500)\n", "")
