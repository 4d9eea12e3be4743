"""Commands as processes, started in a new interpreter or forked from a warm server: both behave alike."""

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
    with open(os.devnull, "w") as nowhere:  # start the server in this folder, before a test changes it
        server.start(SAY, ["end", "return"], os.environ, nowhere).wait()
    yield server
    server.close()


@pytest.fixture(params=["cold", "warm"])
def starter(request, warm) -> Starter:
    return Cold() if request.param == "cold" else warm


def said(starter: Starter, tmp_path: Path, *words: str, status: int = 0, **env: str) -> str:
    """Return the output of ``tests.say``."""
    with (tmp_path / "said.txt").open("w") as output:
        process = starter.start(SAY, words, {**os.environ, **env}, output)
    assert process.wait(60) == status
    assert process.poll() == status
    return (tmp_path / "said.txt").read_text()


def test_a_command_has_its_words_its_environment_its_folder_and_a_session_of_its_own(starter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = json.loads(said(starter, tmp_path, "process", "a=1", "it's [odd]", COLOUR="grün", PYTHONPATH=str(ROOT)))
    assert process["argv"] == [str(ROOT / "tests" / "say.py"), "process", "a=1", "it's [odd]"]
    assert process["spec"] == SAY  # Lightning starts further ranks with it
    assert process["name"] == "__main__"
    assert process["env"]["COLOUR"] == "grün"
    assert "OPENBLAS_NUM_THREADS" not in process["env"]  # only the server has it
    assert process["cwd"] == str(tmp_path)
    assert process["session"] == process["pid"] != os.getsid(0)
    assert process["stdin"] == ""
    assert process["threads"] == 1


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
    if how == "forget":  # an unclosed file
        assert (tmp_path / "forgotten").read_text() == "abc"


def test_a_wait_with_a_timeout_ends(starter, tmp_path):
    with (tmp_path / "out").open("w") as output:
        process = starter.start(SAY, ["sleep"], os.environ, output)
    while "asleep" not in (tmp_path / "out").read_text():
        time.sleep(0.02)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    os.killpg(process.pid, signal.SIGINT)  # it takes effect at once
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


def test_no_process_outlives_its_starter(tmp_path):
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
    """Return whether a process ends within 15 seconds, reaped or not."""
    until = time.monotonic() + 15
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_the_warm_server_of_trainings_has_one_thread_and_has_not_touched_cuda(finished, tmp_path):
    """Neither threads nor CUDA survive a fork. ``finished`` may be another worker's."""
    assert json.loads(said(WARM, tmp_path, "process", OMP_NUM_THREADS="dynamic"))["torch threads"] > 0
    process = json.loads(said(WARM, tmp_path, "process", OMP_NUM_THREADS="3"))
    assert len(list(Path(f"/proc/{WARM.pid}/task").iterdir())) == 1
    assert process["torch threads"] == 3
    assert process["blas threads"] in ([], [3])
    assert process["looked for a gpu"] == []
    assert not process["cuda started"]


def test_several_threads_compute_in_a_forked_process_what_they_compute_in_a_new_one(tmp_path):
    """Libraries read OMP_NUM_THREADS when they are loaded, before the fork, from another environment."""
    warm, cold = (said(starter, tmp_path, "train", OMP_NUM_THREADS="2").split() for starter in (WARM, Cold()))
    assert int(warm[0]) > 1
    assert warm[1] == cold[1]
