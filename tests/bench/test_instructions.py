import subprocess
import sys

import pytest

from bench.instructions import Counter

# A loop of so many rounds between marks.
PROGRAM = """
import itertools, os, sys, threading
from bench.instructions import ignore_marks, mark
ignore_marks()

def work(rounds):
    for _ in itertools.repeat(None, rounds):
        pass

work(10)
print(threading.get_native_id(), flush=True)
sys.stdin.readline()
mark()
for rounds in (100, 300, 600, 900):
    work(rounds)
    mark()
print("done", flush=True)
os._exit(0)  # Python takes many instructions to leave
"""


@pytest.fixture
def counted():
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def counter_of(process: subprocess.Popen) -> Counter:
    try:
        counter = Counter(int(process.stdout.readline()))
    except OSError as error:
        pytest.skip(str(error))
    process.stdin.write("go\n")
    process.stdin.flush()
    return counter


def test_each_round_more_is_as_many_instructions_more(counted):
    _, one, two, three = counter_of(counted).count(4)  # Python learns in the first
    assert two - one > 1000
    assert three - two == pytest.approx(two - one, rel=0.02)
    assert counted.stdout.readline() == "done\n"  # it was let go


def test_a_thread_that_ends_too_early_is_an_error(counted):
    with pytest.raises(OSError, match="ended after 4 of 9 counts"):
        counter_of(counted).count(9)
