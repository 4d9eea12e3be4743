"""Commands as processes: started anew, or forked from a warm server. Both ways, to a caller they are the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.system.processes import Cold, Starter
from src.system.warm import Warm
from tests.helpers import ROOT, WARM

SAY = "tests.say"


@pytest.fixture(scope="module")
def warm():
    server = Warm(["colorsys"])
    with open(os.devnull, "w") as nowhere:  # in this folder, whatever folder a test goes to
        server.start(SAY, ["end", "return"], os.environ, nowhere).wait()
    yield server
    server.close()


@pytest.fixture(params=["cold", "warm"])
def starter(request, warm) -> Starter:
    return Cold() if request.param == "cold" else warm


def said(starter: Starter, tmp_path: Path, *words: str, status: int = 0, **env: str) -> str:
    """What ``tests.say`` prints."""
    with (tmp_path / "said.txt").open("w") as output:
        process = starter.start(SAY, words, {**os.environ, **env}, output)
    assert process.wait(60) == status
    assert process.poll() == status
    return (tmp_path / "said.txt").read_text()


def test_a_command_has_its_words_its_environment_its_folder_and_a_session_of_its_own(starter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = json.loads(said(starter, tmp_path, "process", "a=1", "it's [odd]", COLOUR="grün", PYTHONPATH=str(ROOT)))
    assert told["argv"] == [str(ROOT / "tests" / "say.py"), "process", "a=1", "it's [odd]"]
    assert told["spec"] == SAY  # what Lightning starts again for further ranks
    assert told["name"] == "__main__"
    assert told["env"]["COLOUR"] == "grün"
    assert "OPENBLAS_NUM_THREADS" not in told["env"]  # which the server has for itself
    assert told["cwd"] == str(tmp_path)
    assert told["session"] == told["pid"] != os.getsid(0)
    assert told["stdin"] == ""
    assert told["threads"] == 1


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("return", 0, []),
        ("exit=7", 7, []),
        ("forget", 0, []),
        ("exit=none", 0, []),
        ("exit=what is wrong", 1, ["what is wrong"]),
        ("raise", 1, ["Traceback", "ValueError: no such thing", "in fail"]),
        ("interrupt", 130, []),
        ("signal", -signal.SIGKILL, []),
    ],
)
def test_it_ends_as_any_command_does(starter, tmp_path, how, status, words):
    status = -signal.SIGINT if how == "interrupt" and isinstance(starter, Cold) else status
    output = said(starter, tmp_path, "end", how, status=status, FORGOTTEN=str(tmp_path / "forgotten"))
    for word in words:
        assert word in output
    assert ("at exit" in output) is (how != "signal")
    assert "the last word" in output or how == "signal"
    if how == "forget":  # to close a file
        assert (tmp_path / "forgotten").read_text() == "abc"


def test_it_is_waited_for_no_longer_than_asked(starter, tmp_path):
    with (tmp_path / "out").open("w") as output:
        process = starter.start(SAY, ["sleep"], os.environ, output)
    while "asleep" not in (tmp_path / "out").read_text():
        time.sleep(0.02)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    os.killpg(process.pid, signal.SIGINT)  # heard at once
    assert process.wait(30) != 0
    assert "KeyboardInterrupt" in (tmp_path / "out").read_text()


def test_several_run_at_a_time_and_each_gets_its_own_status(warm, tmp_path):
    with (tmp_path / "out").open("w") as output:
        processes = [warm.start(SAY, ["end", f"exit={i}"], os.environ, output) for i in range(8)]
    assert [process.wait(30) for process in reversed(processes)] == [*range(7, -1, -1)]


def test_what_was_imported_is_there_and_what_nobody_seeded_differs(warm, tmp_path):
    first, second = (json.loads(said(warm, tmp_path, "process")) for _ in range(2))
    assert first["warm"]
    assert first["random"] != second["random"]
    assert not json.loads(said(Cold(), tmp_path, "process"))["warm"]


def test_the_server_is_started_again_if_it_was_killed(tmp_path):
    server = Warm(["json"])
    with (tmp_path / "out").open("w") as output:
        process = server.start(SAY, ["sleep"], os.environ, output)
        os.kill(server.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL  # and the command with it
        assert ends(process.pid)
        assert server.start(SAY, ["end", "exit=7"], os.environ, output).wait(30) == 7
    server.close()


def test_a_server_that_cannot_import_says_so(tmp_path, capfd):
    with (tmp_path / "out").open("w") as output, pytest.raises(ChildProcessError, match="its own output says why"):
        Warm(["no_such_module"]).start(SAY, [], os.environ, output)
    assert "No module named 'no_such_module'" in capfd.readouterr().err


def test_nothing_outlives_who_started_it(tmp_path):
    code = f"""
import os, sys, time
from src.system.warm import Warm
warm = Warm(["json"])
process = warm.start({SAY!r}, ["sleep"], os.environ, open({str(tmp_path / "out")!r}, "w"))
print(process.pid, warm.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert all(ends(pid) for pid in pids)


def ends(pid: int) -> bool:
    """Whether a process ends within some seconds, reaped or not."""
    until = time.monotonic() + 15
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_the_warm_process_of_trainings_has_one_thread_and_has_looked_for_no_gpu(finished, tmp_path):
    """What forked commands would inherit of both would be broken. ``finished`` may be another worker's."""
    assert json.loads(said(WARM, tmp_path, "process", OMP_NUM_THREADS="dynamic"))["torch threads"] > 0
    told = json.loads(said(WARM, tmp_path, "process", OMP_NUM_THREADS="3"))
    assert len(list(Path(f"/proc/{WARM.pid}/task").iterdir())) == 1
    assert told["torch threads"] == 3
    assert told["blas threads"] in ([], [3])
    assert told["looked for a gpu"] == []
    assert not told["cuda started"]


def test_several_threads_compute_in_a_forked_process_what_they_compute_in_a_new_one(tmp_path):
    """Libraries read OMP_NUM_THREADS when they are loaded: before the fork, it was another number."""
    warm, cold = (said(starter, tmp_path, "train", OMP_NUM_THREADS="2").split() for starter in (WARM, Cold()))
    assert int(warm[0]) > 1
    assert warm[1] == cold[1]
