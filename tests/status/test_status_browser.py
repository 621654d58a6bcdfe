"""The page in a real browser, beside real parts on a local Supabase that is broken meanwhile."""

import contextlib
import io
import itertools
import re
import shutil
import socket
import threading
from pathlib import Path

import httpx
import psycopg
import pytest
import uvicorn
from supabase import ClientOptions, create_client

from supabase_resilience import (
    CircuitBreakers,
    Hooks,
    Recovery,
    Resilience,
    RetryConfig,
    Rule,
    log_event,
    protect,
    queue_processor,
    realtime_listener,
    server_side_verification,
)
from supabase_resilience.__main__ import main
from supabase_resilience.listener import _pacing, _passes, _recoverer
from supabase_resilience.local import LocalSupabase
from supabase_resilience.status import EventLog, _backlog, status_app
from supabase_resilience.status._words import duration

from .conftest import eventually

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not here: install it to have the page looked at"
)

NASTY = "<script>alert(1)</script>"
NASTY_TABLE = "<img src=x onerror=alert(1)>"  # a URL has no room for a slash
SCHEMA = f"""
create table orders (id int primary key, status text, updated_at timestamptz default now());
insert into orders select i, case when i <> 7 then 'paid' end from generate_series(1, 50) i;
create table "{NASTY_TABLE}" (id int primary key, updated_at timestamptz not null default now());
alter publication supabase_realtime add table "{NASTY_TABLE}";
select pgmq.create('mails'); select pgmq.create('mails_dead');
"""
SOON = 30_000  # milliseconds
TRAFFIC = "orders"
_PAUSE = threading.Event()


class Shop:
    """Parts that do something all the time, and their page."""

    def __init__(self, local: LocalSupabase) -> None:
        self.local = local
        self._stack = contextlib.ExitStack()
        self._is_over = threading.Event()
        log = EventLog()
        hook = Hooks(log_event, log)
        breaker = CircuitBreakers(
            name="supabase",
            failure_threshold=2,
            reset_timeout=0.5,
            max_reset_timeout=0.5,
            on_event=hook,
        )
        self.protected = protect(self._client(), breaker=breaker, retry=RetryConfig(attempts=1))
        self.queue = queue_processor(self._client(), "mails", handle, max_retries=0, on_event=hook)
        listener = realtime_listener(
            self._client(),
            NASTY_TABLE,
            recovery=Recovery.by_column("updated_at"),
            catch_up_interval=0.5,
            on_event=hook,
        )
        listener.on_change(NASTY, lambda change: None)
        rules = [Rule(NASTY, check=lambda row: row["status"] is not None)]
        verification = server_side_verification(
            self._client(), "orders", rules=rules, interval=3600.0, grace=0.02, on_event=hook
        )
        resilience = Resilience(self.protected, self.queue, listener, verification, check_every=0.5)
        self.app = status_app(resilience, events=log, title="shop")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self._stack.enter_context(resilience)
        self._traffic = threading.Thread(target=self._call_all_the_time)
        self._traffic.start()
        self.serve()

    def _client(self):
        session = self._stack.enter_context(httpx.Client(timeout=10.0))
        options = ClientOptions(httpx_client=session)
        return create_client(self.local.url, self.local.secret_key, options)

    def _call_all_the_time(self) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(Exception):
                self.protected.table(TRAFFIC).select("id").limit(1).execute()
            _PAUSE.wait(0.05)

    def serve(self) -> None:
        config = uvicorn.Config(
            self.app, port=self.port, log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self._serving = threading.Thread(target=self.server.run)
        self._serving.start()
        eventually(lambda: self.server.started)

    def stop_serving(self) -> None:
        self.server.should_exit = True
        self._serving.join()

    def refuse_key(self) -> None:
        refused = {"message": "Invalid API key"}
        self.local.faults.add(match="/rest/v1/orders", times=None, status=401, body=refused)

    def probe(self, path: str) -> int:
        return httpx.get(self.url + path).status_code

    def close(self) -> None:
        self._is_over.set()
        self._traffic.join()
        self.stop_serving()
        self._stack.close()


def handle(data) -> None:
    raise ValueError(f"cannot mail to {data['to']}")


@pytest.fixture(scope="module")
def local():
    with contextlib.redirect_stdout(io.StringIO()) as migration:
        assert 0 == main(["sql", "queue"])
    with LocalSupabase(schema=[SCHEMA, migration.getvalue()]) as stack:
        yield stack


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def shop(local):
    with pytest.MonkeyPatch.context() as patched:
        # Nothing here is worth a wait that only spares a server.
        patched.setattr(_pacing, "_FIRST", 0.05)
        patched.setattr(_recoverer, "_LEAST_PAUSE", 0.02)
        patched.setattr(_recoverer, "_LAG", 0.5)
        patched.setattr(_backlog, "_EVERY", 0.3)
        patched.setattr(_passes, "_UNTIL_CONFIRMED", 0.1)
        made = Shop(local)
        yield made
        made.close()


@pytest.fixture(autouse=True)
def healed(shop):
    """No fault outlives its test."""
    yield
    shop.local.faults.clear()
    shop.local.postgres.start()


@pytest.fixture
def page(browser, shop):
    """The page, live; in the end its browser has found nothing to complain about."""
    complaints = []
    with browser.new_context(viewport={"width": 1000, "height": 800}) as context:
        made = context.new_page()
        made.on("console", lambda message: complaints.append(message.text))
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.on("dialog", lambda dialog: complaints.append(dialog.message))
        made.goto(shop.url)
        sync_api.expect(made.locator("#live")).to_have_text("Live")
        all_is_well(made)
        yield made
        assert [] == [each for each in complaints if "ERR_" not in each]


def see(locator, text) -> None:
    sync_api.expect(locator).to_have_text(text, timeout=SOON)


def all_is_well(page) -> None:
    see(page.locator("h1"), "All 4 parts work")


def number(page, part, label):
    """The number under a label on a part's card."""
    return page.get_by_role("article", name=part).locator(f"dt:text-is('{label}') + dd")


# --- what happens meanwhile -----------------------------------------------------------------------


def test_a_dead_database_is_seen_coming_and_going(page, shop):
    """Parts turn, with reason, words and time, and back; the process stays alive all the while."""
    breaker = page.get_by_role("article", name="supabase", exact=True)
    see(breaker.locator(".badge"), "ok")
    shop.local.postgres.stop()
    see(breaker.locator(".badge"), "degraded")
    see(breaker.locator(".reason"), re.compile(r"the circuit is (half-)?open: .+ for \d+ s"))
    see(page.get_by_role("article", name="mails").locator(".badge"), "degraded")
    see(number(page, "mails", "Oldest job waits"), "unknown")
    see(page.locator("h1"), re.compile(r"[23] of 4 parts are degraded"))
    see(page.locator("#news"), re.compile("breaker:supabase degraded"))
    assert page.title().endswith("degraded · shop")
    assert (200, 200) == (shop.probe("livez"), shop.probe("readyz"))
    shop.local.postgres.start()
    see(breaker.locator(".badge"), "ok")
    all_is_well(page)
    see(page.locator("#news"), "All 4 parts work")
    see(number(page, "mails", "Oldest job waits"), "none waits")
    assert page.locator("li", has_text="circuit closed").count()


def test_what_needs_a_person_is_failing(page, shop):
    """A key that is refused heals by no waiting: not ready, and still alive."""
    shop.refuse_key()
    see(page.locator("h1"), "1 of 4 parts is failing")
    see(page.get_by_role("article", name="supabase", exact=True).locator(".badge"), "failing")
    assert (200, 503) == (shop.probe("livez"), shop.probe("readyz"))
    assert 200 == shop.probe("readyz?part=queue:mails")
    shop.local.faults.clear()
    all_is_well(page)


def test_rows_that_realtime_lost_are_counted(page, shop):
    """As many as a catch-up has found."""
    see(number(page, NASTY_TABLE, "Rows Realtime lost"), "0")
    shop.local.realtime.lose_changes()
    with psycopg.connect(shop.local.dsn, autocommit=True) as owner:
        owner.execute(f'insert into "{NASTY_TABLE}" (id) values (1), (2)')
    shop.local.realtime.catch_up()
    shop.local.realtime.lose_changes(False)
    see(number(page, NASTY_TABLE, "Rows Realtime lost"), "2")


def test_a_dead_letter_is_seen_with_its_reason(page, shop):
    """And nothing of what is in it."""
    before = number(page, "mails", "Dead letters").inner_text()
    shop.queue.enqueue({"to": "ada@example.com"})
    see(number(page, "mails", "Dead letters"), str(int(before) + 1))
    see(
        page.locator("li", has_text="mails job dead lettered: ValueError").first,
        re.compile("1 time"),
    )
    assert "ada@" not in page.content()
    assert shop.local.secret_key not in page.content()
    page.get_by_text("How to replay dead letters").click()
    assert "#commands" == page.evaluate("location.hash")


def test_the_last_pass_is_told_rule_by_rule(page):
    """Found, fixed, open."""
    table = page.get_by_role("table", name="Rules of orders in the last pass")
    see(table.get_by_role("row").nth(1), NASTY + "error" + "1" + "0" + "1")
    see(number(page, "orders", "Open violations"), "1")


def test_it_says_when_it_is_not_live(page, shop):
    """A page that nobody renews must not look like one where nothing happens."""
    page.clock.install()
    shop.stop_serving()
    page.clock.fast_forward(10_000)
    see(page.locator("#live"), re.compile(r"Not live: last update 1\d s ago"))
    shop.serve()
    page.clock.fast_forward(5_000)
    see(page.locator("#live"), "Live")


def test_who_goes_leaves_nothing_behind(browser, shop):
    """A stream ends with its viewer."""
    with browser.new_context() as context:
        viewer = context.new_page()
        viewer.goto(shop.url)
        see(viewer.locator("#live"), "Live")
        assert shop.server.server_state.connections
    eventually(lambda: not shop.server.server_state.connections)


# --- for everyone ---------------------------------------------------------------------------------


def test_names_are_text(page):
    """A table may be called like an image, a rule and a handler like a script."""
    see(page.locator("#listeners ~ article h3"), NASTY_TABLE)
    assert 2 == page.get_by_role("rowheader", name=NASTY).count()
    assert 0 == page.locator("main script, main img").count()


def test_the_server_renders_it_all(browser, shop):
    """Without JavaScript there is the same page, of when it was loaded."""
    with browser.new_context(java_script_enabled=False) as context:
        plain = context.new_page()
        plain.goto(shop.url)
        see(plain.locator("h1"), "All 4 parts work")
        see(plain.locator("#live"), re.compile(r"As of \d\d:\d\d:\d\d UTC; reloads every 15 s"))


def test_the_browser_counts_in_the_same_words(page):
    """`page.js` and `_words.py` say durations alike."""
    script = (Path(status_app.__code__.co_filename).parent / "page.js").read_text()
    words = script[script.index("const two") : script.index("const set")]
    samples = [-1, 0.9, 59, 60, 3599, 3600, 7500, 86399, 86400, 100_000, 1_000_000]
    assert [duration(each) for each in samples] == page.evaluate(
        f"(samples) => {{ {words} return samples.map(duration) }}", samples
    )


_CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.getClientRects().length) continue;
    const pair = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    found.push([contrast, node.className, node.textContent]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(browser, shop, scheme):
    """Contrast is that of WCAG AA in both themes, and a phone needs no sideways scrolling."""
    shop.refuse_key()
    with browser.new_context(
        color_scheme=scheme, viewport={"width": 390, "height": 800}
    ) as context:
        phone = context.new_page()
        phone.goto(shop.url)
        see(phone.locator("h1"), "1 of 4 parts is failing")
        found = phone.evaluate(_CONTRASTS)
        assert len(found) > 100
        assert found[0][0] >= 4.5, found[0]
        assert 390 == phone.evaluate("document.documentElement.scrollWidth")
        back = phone.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ("dark" == scheme) == (int(back[4:].split(",")[0]) < 128)


def test_it_can_be_used_without_eyes_and_mouse(page):
    """Landmarks, headings in order, names for all there is, and a way past the top."""
    assert page.get_by_role("main").count()
    assert page.get_by_role("contentinfo").count()
    assert page.get_by_role("region", name="Verdict").count()
    levels = page.eval_on_selector_all("h1, h2, h3", "all => all.map(h => Number(h.nodeName[1]))")
    assert 1 == levels[0]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    for group in ("Circuit breakers", "Queues", "Listeners", "Verifications"):
        assert page.get_by_role("region", name=group).get_by_role("article").count()
    assert 0 == page.locator("th:not([scope])").count()
    assert 0 == page.locator("table:not(:has(caption))").count()
    assert 0 == page.locator("svg:not([aria-hidden=true])").count()
    assert 0 == page.locator("main [aria-live], main [role=status]").count()  # only the verdict
    page.keyboard.press("Tab")
    assert "Skip to the verdict" == page.evaluate("document.activeElement.textContent")
    assert "none" != page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    assert "main" == page.evaluate("document.activeElement.id")


def test_it_keeps_still_for_who_asks(browser, shop):
    """Nothing moves under `prefers-reduced-motion`."""
    with browser.new_context(reduced_motion="reduce") as context:
        still = context.new_page()
        still.goto(shop.url)
        see(still.locator("#live"), "Live")
        assert 0 == still.evaluate("document.getAnimations().length")
