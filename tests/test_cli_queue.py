"""The commands `work` and `queue`, as a person and a container run them."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psycopg
import pytest
from supabase import ClientOptions, create_client

import supabase_resilience
from supabase_resilience import protect, queue_processor
from supabase_resilience.__main__ import main
from supabase_resilience.cli._table import table
from supabase_resilience.local import LocalSupabase

COMMAND = [sys.executable, "-m", "supabase_resilience"]

MIGRATION = Path(supabase_resilience.__file__).parent / "sql" / "queue.sql"
SCHEMA = """
select pgmq.create('mails');
select pgmq.create('mails_high');
select pgmq.create('mails_dead');
create table sent (id int primary key);
"""


@pytest.fixture(scope="module", params=["stock", "migrated"])
def local(request):
    """A project with the functions that every project has, and one with ours."""
    with LocalSupabase(
        schema=[SCHEMA, *([MIGRATION] if request.param == "migrated" else [])]
    ) as it:
        it.is_migrated = request.param == "migrated"
        yield it


@pytest.fixture
def project(local, monkeypatch):
    """A client of the project that commands find in the environment; its queues are empty."""
    monkeypatch.setenv("SUPABASE_URL", local.url)
    monkeypatch.setenv("SUPABASE_KEY", local.secret_key)
    with psycopg.connect(local.admin_dsn, autocommit=True) as connection:
        connection.execute("truncate pgmq.q_mails, pgmq.q_mails_high, pgmq.q_mails_dead, sent")
    with httpx.Client(timeout=30.0) as session:
        options = ClientOptions(httpx_client=session)
        yield protect(create_client(local.url, local.secret_key, options))


def eventually(condition):
    """Wait until a condition holds; fail when it never does."""
    pause = threading.Event()
    end = time.monotonic() + 60  # far more than any of it takes: only a hang ends here
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        pause.wait(0.05)


def run(*arguments, cwd=None, stdin=""):
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        input=stdin,
    )


def bury(client, *payloads, reason="no such address"):
    """Make dead letters; their ids."""

    def process(data):
        raise ValueError(reason)

    processor = queue_processor(client, "mails", process, max_retries=0)
    ids = processor.enqueue_many(payloads)
    processor.run(until_empty=True)
    return ids


def run_what_waits(client):
    """The payloads of the jobs that are ready."""
    done = []
    queue_processor(client, "mails", done.append).run(until_empty=True)
    return done


# --- the table ------------------------------------------------------------------------------------


def test_columns_line_up():
    """Each column is as wide as its widest cell; no line ends in spaces."""
    assert ["a    long", "xyz  1", "q"] == table(("a", "long"), [("xyz", 1), ("q", "")]).split("\n")


def test_a_cell_cannot_move_the_terminal():
    """Line ends and control characters of an error's text are spaces."""
    assert "a\nx [31m y" == table(("a",), [("x\x1b[31m\r\n y",)])


def test_a_line_fits_the_terminal():
    """What is too long says so."""
    assert ["abc", "abcd…"] == table(("abc",), [("abcdefgh",)], width=5).split("\n")


# --- work -----------------------------------------------------------------------------------------


WORKER = """
import os
from supabase import create_client, acreate_client
from supabase_resilience import queue_processor

client = create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"])


def process(data):
    client.table("sent").insert({"id": data}).execute()


async def process_async(data):
    process(data)


queue = queue_processor(client, "mails", process)


def make():
    return queue_processor(client, "mails", process)


async def make_async():
    other = await acreate_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"])
    return queue_processor(other, "mails", process_async)
"""


@pytest.fixture
def worker(tmp_path):
    """A directory with the module `jobs`."""
    (tmp_path / "jobs.py").write_text(WORKER)
    return tmp_path


def sent(client):
    return sorted(row["id"] for row in client.table("sent").select("id").execute().data)


@pytest.mark.parametrize("name", ["queue", "make", "make_async"])
def test_work_until_empty(project, worker, name):
    """A processor, and a function of either colour that makes one, do what there is and end."""
    queue_processor(project, "mails", None).enqueue_many([1, 2, 3])
    done = run("work", f"jobs:{name}", "--until-empty", cwd=worker)
    assert (0, "") == (done.returncode, done.stdout), done.stderr
    assert [1, 2, 3] == sent(project)
    assert "Traceback" not in done.stderr
    assert "HTTP Request" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX's")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["queue", "make_async"])
def test_work_until_a_signal(project, worker, name, end):
    """It waits for jobs, does them, and a signal ends it with 0."""
    with subprocess.Popen([*COMMAND, "work", f"jobs:{name}"], cwd=worker) as process:
        queue_processor(project, "mails", None).enqueue(7)
        eventually(lambda: sent(project) == [7] or process.poll() is not None)
        process.send_signal(end)
    assert (0, [7]) == (process.returncode, sent(project))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nowhere:queue", "there is no module 'nowhere'"),
        ("broken_a:nothing", "broken_a has no 'nothing'"),
        ("broken_a:number", "expected a QueueProcessor, .* got int"),
        ("broken_a:text", "expected a QueueProcessor, .* got str"),
        ("broken_a:needy", "needs arguments"),
        ("broken_a:raising", r"making the queue failed: ZeroDivisionError.*broken_a.py, line 9"),
        ("broken_a:raising_async", "making the queue failed: ZeroDivisionError"),
        ("broken_a:making_nothing", "got NoneType"),
        ("broken_a:making_nothing_async", "got NoneType"),
        ("broken_b:queue", "importing broken_b failed: ModuleNotFoundError.*line 1"),
        ("broken_c:queue", "importing broken_c failed: SyntaxError"),
    ],
)
def test_work_says_what_it_cannot_load(tmp_path, spec, said):
    """One sentence that names the module, without a traceback; the exit code is 1."""
    (tmp_path / "broken_a.py").write_text(BROKEN)
    (tmp_path / "broken_b.py").write_text("import a_module_that_is_missing")
    (tmp_path / "broken_c.py").write_text("def queue(:")
    done = run("work", spec, cwd=tmp_path)
    assert (1, "") == (done.returncode, done.stdout)
    assert re.search(said, done.stderr), done.stderr
    assert done.stderr.startswith(f"{spec}: ")
    assert "Traceback" not in done.stderr
    assert 1 == done.stderr.count("\n")


BROKEN = """
number = 7
text = "queue"

def needy(client):
    return client

def raising():
    1 / 0

async def raising_async():
    1 / 0

def making_nothing():
    pass

async def making_nothing_async():
    pass
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["work"],
        ["work", "jobs"],
        ["work", ":queue"],
        ["work", "jobs:queue", "--shutdown-timeout", "-1"],
        ["work", "jobs:queue", "--shutdown-timeout", "nan"],
        ["work", "jobs:queue", "--shutdown-timeout", "soon"],
        ["work", "jobs:queue", "--log-level", "loud"],
        ["queue"],
        ["queue", "mails", "--stats", "--dead"],
        ["queue", "mails", "--dead", "--limit", "0"],
        ["queue", "mails", "--lane", "10"],
        ["queue", "mails", "--lane", "high=_high"],
    ],
    ids=" ".join,
)
def test_misuse_is_told(arguments, capsys):
    """It ends with 2 and the usage, before anything is loaded."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert 2 == ended.value.code
    assert "usage:" in capsys.readouterr().err


def test_a_missing_queue_ends_the_worker(project, tmp_path):
    """It says which, and the SQL that makes it; nothing is tried for ever."""
    (tmp_path / "jobs.py").write_text(WORKER.replace('"mails"', '"nowhere"'))
    done = run("work", "jobs:queue", cwd=tmp_path)
    assert 1 == done.returncode
    assert re.search(r"^select .*create\('nowhere'\);$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


IN_MEMORY = """
from supabase_resilience import AsyncQueueProcessor, QueueError, QueueProcessor

async def process_async(data):
    print("done", data)

def made(kind, process):
    queue = kind(process)
    queue._core.put([queue._core.new_job(7, 0, 0.0, None)], 0.0)  # it starts nothing
    return queue

def abort(data):
    raise KeyboardInterrupt

queue = made(AsyncQueueProcessor, process_async)
aborts = made(QueueProcessor, abort)

def refused():
    raise QueueError("there is no queue 'nowhere'")

async def refused_async():
    refused()
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("queue", (0, "done 7\n", "")),
        ("aborts", (1, "", "aborted; the jobs in hand will be delivered again\n")),
        ("refused", (1, "", "there is no queue 'nowhere'\n")),
        ("refused_async", (1, "", "there is no queue 'nowhere'\n")),
    ],
)
def test_work_says_how_it_ended(tmp_path, monkeypatch, capsys, name, expected):
    """In its exit code, and in a sentence if it was not as asked; `debug` logs every request."""
    (tmp_path / "in_memory.py").write_text(IN_MEMORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "in_memory", raising=False)
    spec, (code, out, said) = f"in_memory:{name}", expected
    options = ["--until-empty", "--shutdown-timeout", "5", "--log-level", "debug"]
    httpx_log = logging.getLogger("httpx")
    monkeypatch.setattr(httpx_log, "level", logging.NOTSET)
    assert code == main(["work", spec, *options])
    told = capsys.readouterr()
    assert (out, f"{spec}: {said}" if said else "") == (told.out, told.err)
    assert logging.NOTSET == httpx_log.level


# --- queue ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["SUPABASE_URL"], "set SUPABASE_URL:"),
        (["SUPABASE_KEY"], "set SUPABASE_KEY:"),
        (["SUPABASE_URL", "SUPABASE_KEY"], "set SUPABASE_URL and SUPABASE_KEY:"),
    ],
)
def test_a_missing_project_is_told(monkeypatch, capsys, missing, said):
    """The variables that are missing are named."""
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SUPABASE_KEY", "key")
    for name in missing:
        monkeypatch.delenv(name)
    assert 1 == main(["queue", "mails"])
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        ("http://127.0.0.1:1", "key", "no connection"),
        ("no url", "key", "Invalid URL"),
    ],
)
def test_a_project_that_is_not_there_is_told(monkeypatch, capsys, url, key, said):
    """A sentence, and no traceback."""
    monkeypatch.setenv("SUPABASE_URL", url)
    monkeypatch.setenv("SUPABASE_KEY", key)
    assert 1 == main(["queue", "mails"])
    assert said in capsys.readouterr().err


def test_a_wrong_key_is_told_but_not_shown(project, monkeypatch, capsys):
    """The reason is there, the key is not."""
    monkeypatch.setenv("SUPABASE_KEY", "sb_secret_wrong")
    assert 1 == main(["queue", "mails"])
    told = capsys.readouterr()
    assert told.err
    assert "sb_secret_wrong" not in told.out + told.err


def test_stats(project, local, capsys):
    """Stock mode says what it cannot know, and what would tell."""
    producer = queue_processor(project, "mails", None)
    producer.enqueue_many([1, 2])
    producer.enqueue(3, delay=600)
    labels = ["ready", "delayed or in hand", "oldest ready job waits", "dead letters"]
    assert 0 == main(["queue", "mails"])
    lines = capsys.readouterr().out.splitlines()
    assert labels == [re.split(r"  +", line)[0] for line in lines[1:]]
    if local.is_migrated:
        assert ["2", "1", "0"] == [lines[row].split()[-1] for row in (1, 2, 4)]
        assert re.search(r"\d+\.\d s$", lines[3])
    else:
        assert lines[1].endswith("unknown: needs `sql queue`")


def test_dead_letters_are_listed_without_their_data(project, capsys):
    """Id, time, attempts, error and reason; data only when it is asked for."""
    first, second = bury(project, {"to": "ada@example.com"}, {"to": "bob@example.com"})
    assert 0 == main(["queue", "mails", "--dead"])
    told = capsys.readouterr().out
    head, one, two = told.splitlines()
    assert ["id", "died", "attempts", "error", "reason"] == head.split()
    assert one.startswith(first)
    assert two.startswith(second)
    assert re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  1  +ValueError  failed", one)
    assert "example.com" not in told
    assert 0 == main(["queue", "mails", "--dead", "--show-data"])
    assert '{"to": "ada@example.com"}' in capsys.readouterr().out


def test_the_list_can_be_limited(project, capsys):
    """It says that there may be more."""
    first, _ = bury(project, 1, 2)
    assert 0 == main(["queue", "mails", "--dead", "--limit", "1"])
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith(first)
    assert "(the oldest 1; --limit shows more)" == told[2]
    assert 3 == len(told)


def test_no_dead_letters_are_told(project, capsys):
    """An empty table would look like an error."""
    assert 0 == main(["queue", "mails", "--dead"])
    assert "mails has no dead letters\n" == capsys.readouterr().out


def test_one_dead_letter_is_replayed(project, capsys):
    """It waits in the queue again, the other stays."""
    first, second = bury(project, "a", "b")
    assert 0 == main(["queue", "mails", "--replay", first])
    assert f"{first} replayed\n" == capsys.readouterr().out
    assert ["a"] == run_what_waits(project)
    main(["queue", "mails", "--dead"])
    told = capsys.readouterr().out
    assert second in told
    assert first not in told


def test_all_dead_letters_are_replayed(project, capsys):
    """More than one page of them."""
    bury(project, *range(120))
    assert 0 == main(["queue", "mails", "--replay", "all"])
    assert "120 of mails replayed\n" == capsys.readouterr().out
    assert list(range(120)) == sorted(run_what_waits(project))


def test_a_dead_letter_goes_back_to_its_lane(project, local):
    """With the lanes given, urgent work is urgent again."""

    def process(data):
        raise ValueError("no")

    options = {"lanes": {10: "_high"}, "max_retries": 0}
    processor = queue_processor(project, "mails", process, **options)
    id_ = processor.enqueue("urgent", 10)
    processor.run(until_empty=True)
    assert 0 == main(["queue", "mails", "--replay", id_, "--lane", "10=_high"])
    with psycopg.connect(local.admin_dsn) as connection:
        counts = [
            connection.execute(f"select count(*) from pgmq.q_{queue}").fetchone()
            for queue in ("mails", "mails_high", "mails_dead")
        ]
    assert [(0,), (1,), (0,)] == counts


def test_an_unknown_dead_letter_is_told(project, capsys):
    """It ends with 1."""
    assert 1 == main(["queue", "mails", "--replay", "nobody"])
    assert "mails has no dead letter 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["", "n\n", "\n"])
def test_purge_asks_first(project, answer):
    """Anything but a yes, and nobody being there, deletes nothing."""
    (id_,) = bury(project, 1)
    done = run("queue", "mails", "--purge-dead", stdin=answer)
    assert 1 == done.returncode
    assert "nothing was deleted" in done.stderr
    assert id_ in run("queue", "mails", "--dead").stdout


@pytest.mark.parametrize(("flags", "answer"), [([], "y\n"), ([], "Yes\n"), (["--yes"], "")])
def test_purge_deletes_when_it_is_sure(project, flags, answer):
    """After a yes, or with --yes."""
    bury(project, 1, 2)
    done = run("queue", "mails", "--purge-dead", *flags, stdin=answer)
    assert 0 == done.returncode, done.stderr
    assert "2 dead letters of mails deleted" in done.stdout
    assert "mails has no dead letters\n" == run("queue", "mails", "--dead").stdout


@pytest.mark.parametrize("action", ["--stats", "--dead", "--purge-dead"])
def test_a_queue_that_is_not_there_is_told(project, capsys, action):
    """With the SQL that makes it."""
    assert 1 == main(["queue", "nowhere", action, "--yes"])
    told = capsys.readouterr().err
    assert re.search(r"^select .*create\('nowhere'\);$", told, re.MULTILINE)


def test_create(project, local, capsys):
    """By our migration where it is; else the SQL is told, and what is there is left alone."""
    made = main(["queue", "letters", "--create", "--lane", "10=_high"])
    told = capsys.readouterr()
    names = ["letters", "letters_high", "letters_dead"]
    if local.is_migrated:
        assert (0, "letters is there, and takes jobs\n") == (made, told.out)
    else:
        assert 1 == made
        for name in names:
            assert f"select pgmq.create('{name}');" in told.err
        with psycopg.connect(local.dsn, autocommit=True) as connection:
            for name in names:
                connection.execute(f"select pgmq.create('{name}')")
    assert 0 == main(["queue", "letters", "--create", "--lane", "10=_high"])
    assert 0 == main(["queue", "letters", "--lane", "10=_high"])
