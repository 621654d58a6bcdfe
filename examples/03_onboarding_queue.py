"""Onboard new users in a durable queue: nothing is lost while a mail service fails and goes down.

Run it: `python examples/03_onboarding_queue.py`. It needs no account: it starts a local Supabase,
a mail service that is not at its best, and the app, and signs up 40 users.
"""

import logging
import sys
import threading
import time
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel
from supabase import Client, ClientOptions, create_client

from supabase_resilience import QueueProcessor, current_job, protect, queue_processor
from supabase_resilience.local import LocalSupabase

SCHEMA = """
select pgmq.create('onboarding');
select pgmq.create('onboarding_dead');
create table profiles (id uuid primary key references auth.users, name text not null);
create table preferences (id uuid primary key references profiles, language text not null);
"""
GREETINGS = {"en": "Welcome!", "de": "Willkommen!"}

# --- the app --------------------------------------------------------------------------------------


class SignUp(BaseModel):
    """What a user fills in; `language` is that of the mail."""

    email: str
    password: str
    name: str
    language: str


def make_api(accounts: Client, onboarding: QueueProcessor) -> FastAPI:
    """The web process: it signs users up and leaves the rest to the queue.

    `accounts` is a client of its own. Signing up changes who a client is: whatever else shared it
    would go on as the user who came last, with that user's rights.
    """
    api = FastAPI()

    @api.post("/signup", status_code=202)
    def sign_up(form: SignUp) -> dict[str, str]:
        user = accounts.auth.sign_up({"email": form.email, "password": form.password}).user
        if user is None:
            raise HTTPException(409, "the user could not be signed up")
        person = {"id": user.id, **form.model_dump(exclude={"password"})}
        # A crash just before this line would leave a user without a job. Where that matters, let a
        # trigger on auth.users call pgmq.send(): any JSON in the queue is a job.
        return {"job": onboarding.enqueue(person)}

    return api


def make_worker(supabase: Client, mail_url: str) -> QueueProcessor:
    """The worker; in production it is run by `python -m supabase_resilience work module:queue`."""

    def onboard(person: dict[str, Any]) -> None:
        """May run more than once for a person, as any job: each step has its effect only once."""
        supabase.table("profiles").upsert({"id": person["id"], "name": person["name"]}).execute()
        preferences = {"id": person["id"], "language": person["language"]}
        supabase.table("preferences").upsert(preferences, ignore_duplicates=True).execute()
        sent = httpx.post(
            mail_url,
            json={"to": person["email"], "text": GREETINGS[person["language"]]},
            headers={"Idempotency-Key": current_job().id},  # the same in every attempt
            timeout=2.0,
        ).raise_for_status()  # no connection, or 5xx: an outage, which spends no attempt
        if not sent.json()["accepted"]:
            raise ValueError("the mail was not accepted")  # spends an attempt

    return queue_processor(
        supabase,
        "onboarding",
        onboard,
        concurrency=4,
        max_retries=2,
        visibility_timeout=5.0,  # longer than it ever takes to onboard a user
    )


# --- the staging ----------------------------------------------------------------------------------

USERS = 40
CLEAR = "\r\033[K" if sys.stdout.isatty() else ""


def make_mail_service(mails: dict[str, str]) -> FastAPI:
    """It takes each mail once, by its key, and refuses every fourth at first."""
    service = FastAPI()
    asked: set[str] = set()
    lock = threading.Lock()

    @service.post("/")
    def take(mail: dict[str, str], idempotency_key: Annotated[str, Header()]) -> dict[str, bool]:
        with lock:
            is_new = idempotency_key not in asked
            asked.add(idempotency_key)
            if is_new and len(asked) % 4 == 0:
                return {"accepted": False}
            mails.setdefault(idempotency_key, mail["to"])
            return {"accepted": True}

    return service


class Server:
    """A web app on a port of 127.0.0.1, which stays the same when it is stopped and started."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._port = 0
        self.start()
        self.url = f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        """Return once it answers."""
        self._server = uvicorn.Server(uvicorn.Config(self._app, port=self._port, log_level=30))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        """From now on connections are refused."""
        self._server.should_exit = True
        self._thread.join()


def say(text: str) -> None:
    """Tell a line, in place of the bar."""
    print(f"{CLEAR}{text}", flush=True)


def wait(worker: QueueProcessor, seconds: float = 60.0, until: int | None = None) -> None:
    """Wait for seconds, or until so many jobs have come to an end; a terminal shows a bar."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        stats = worker.get_stats()
        if CLEAR:
            bar = ("#" * stats.succeeded).ljust(USERS, ".")
            print(f"{CLEAR}{bar} {stats.succeeded} of {USERS}", end="", flush=True)
        if until is not None and stats.succeeded + stats.dead >= until:
            return
        time.sleep(0.05)


def users_sign_up(api: Server, mail: Server, worker: QueueProcessor) -> None:
    for number in range(USERS):
        if number == USERS // 2:
            say("the mail service goes down; users keep signing up")
            mail.stop()
        language = "tlh" if number == 7 else "de" if number % 3 else "en"
        form = {"email": f"user{number}@example.com", "password": f"a long one, {number}"}
        form |= {"name": f"User {number}", "language": language}
        httpx.post(f"{api.url}signup", json=form).raise_for_status()
        wait(worker, 0.05)


def main() -> None:
    logging.basicConfig(stream=sys.stdout, format=f"{CLEAR}   >> %(message)s")
    logging.getLogger("supabase_resilience").setLevel(logging.INFO)
    mails: dict[str, str] = {}
    mail = Server(make_mail_service(mails))
    with LocalSupabase(schema=SCHEMA) as local:
        supabase = protect(create_client(local.url, local.secret_key))
        plain = ClientOptions(auto_refresh_token=False, persist_session=False)
        accounts = create_client(local.url, local.publishable_key, plain)
        api = Server(make_api(accounts, queue_processor(supabase, "onboarding", None)))
        with make_worker(supabase, mail.url) as worker:
            users_sign_up(api, mail, worker)
            mail.start()
            say(f"the mail service is back, with {worker.get_stats().succeeded} users onboarded")
            wait(worker, until=USERS)
            for letter in worker.dead_letters():
                say(f"a dead letter: {letter.reason}, {letter.error}; fixed, and replayed")
                GREETINGS["tlh"] = "nuqneH!"  # the fix
                worker.replay(letter.id)
            wait(worker, until=USERS + 1)
        api.stop()
        stats = worker.get_stats()
        say(f"{stats.failed} attempts failed, {stats.postponed} met the outage and cost none")
        for table in ("profiles", "preferences"):
            say(f"{len(supabase.table(table).select('id').execute().data)} {table}")
        say(f"{len(mails)} mails")
    mail.stop()


if __name__ == "__main__":
    main()
