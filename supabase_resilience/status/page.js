// Keeps the page current: puts newer renderings of the server in place, counts ages, and says when
// it has heard nothing for a while. It shows what it is sent and sends nothing.
"use strict";
(() => {
  const SILENCE = 7; // seconds; the server says something at least every three
  const main = document.getElementById("main");
  const live = document.getElementById("live");
  const news = document.getElementById("news");
  let at = Number(main.dataset.at); // the server's time of the last word from it
  let heard = performance.now();
  let seen = main.dataset.version;
  let said = main.dataset.said;
  let source = null;

  const two = (large, unit, small, smallUnit) =>
    small ? `${large} ${unit} ${small} ${smallUnit}` : `${large} ${unit}`;
  const duration = (seconds) => {
    const whole = Math.max(0, Math.trunc(seconds));
    const [minutes, hours, days] = [60, 3600, 86400].map((each) => Math.floor(whole / each));
    if (whole < 60) return `${whole} s`;
    if (whole < 3600) return `${minutes} min`;
    if (whole < 86400) return two(hours, "h", minutes % 60, "min");
    return two(days, "d", hours % 24, "h");
  };

  const set = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };
  const silence = () => (performance.now() - heard) / 1000;
  const tick = () => {
    const now = at + silence();
    for (const each of main.querySelectorAll("time[data-since]"))
      set(each, duration(now - Number(each.dataset.since)));
    for (const each of main.querySelectorAll("time[data-until]"))
      set(each, duration(Number(each.dataset.until) - now));
    const isLive = silence() < SILENCE;
    live.className = isLive ? "live" : "stale";
    set(live, isLive ? "Live" : `Not live: last update ${duration(silence())} ago. Reconnecting…`);
  };

  // Only what differs is touched: the focus, a selection and what is scrolled stay where they are.
  const attributes = (old, fresh) => {
    for (const { name } of [...old.attributes])
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes)
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  };
  const isSame = (old, fresh) =>
    old.nodeName === fresh.nodeName && (old.id || "") === (fresh.id || "");
  const children = (old, fresh) => {
    let here = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      let found = here;
      if (wanted.id) {
        while (found && !isSame(found, wanted)) found = found.nextSibling;
      } else if (found && !isSame(found, wanted)) {
        found = null;
      }
      if (!found) {
        old.insertBefore(document.importNode(wanted, true), here);
        continue;
      }
      while (here !== found) here = drop(old, here);
      renew(here, wanted);
      here = here.nextSibling;
    }
    while (here) here = drop(old, here);
  };
  const drop = (parent, node) => {
    const next = node.nextSibling;
    parent.removeChild(node);
    return next;
  };
  const renew = (old, fresh) => {
    if (old.nodeType === Node.TEXT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    attributes(old, fresh);
    if (old.nodeName !== "TIME" || old.dataset.since === undefined) children(old, fresh);
  };

  const hear = (time) => {
    at = time;
    heard = performance.now();
    tick();
  };
  const show = (state) => {
    const fresh = new DOMParser().parseFromString(`<main>${state.html}</main>`, "text/html");
    children(main, fresh.querySelector("main"));
    document.title = state.title;
    document.getElementById("icon").href = state.icon;
    // Read aloud: the verdict, when it is another one, and not each number.
    if (said !== state.said) set(news, state.said);
    said = state.said;
    hear(state.at);
  };
  const listen = () => {
    if (source) source.close();
    source = new EventSource(`events?seen=${encodeURIComponent(seen)}`);
    source.addEventListener("state", (event) => {
      seen = event.lastEventId;
      show(JSON.parse(event.data));
    });
    source.addEventListener("beat", (event) => hear(Number(event.data)));
  };

  listen();
  tick();
  setInterval(tick, 1000);
  // A browser gives up after an answer that is no stream, such as a proxy's 502.
  setInterval(() => {
    if (source.readyState === EventSource.CLOSED) listen();
  }, 2500);
})();
