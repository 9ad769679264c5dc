// The page is whole without this script. With it, the page follows: it asks for itself
// again when the server tells of another version, and takes over what is different.
"use strict";
(() => {
  const page = document.documentElement;
  const note = document.getElementById("following");
  let shown = page.dataset.version; // what the page shows
  let told = shown; // what the server has
  let asking = null;
  let stream = null;
  let again = 0;

  const say = (text, state) => {
    if (!note) return;
    note.hidden = false;
    note.textContent = text;
    note.dataset.state = state;
  };

  // same takes over into `now` what is different in `next`. What is the same stays the
  // same element, so that focus, selection and open details are kept.
  const same = (now, next) => {
    if (now.isEqualNode(next)) return;
    if (now.nodeType !== next.nodeType || now.nodeName !== next.nodeName || (now.id || "") !== (next.id || "")) {
      now.replaceWith(next.cloneNode(true));
      return;
    }
    if (now.nodeType !== Node.ELEMENT_NODE) {
      if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue;
      return;
    }
    if (now.nodeName === "TIME" && now.dateTime === next.dateTime) return;
    for (const a of [...now.attributes]) {
      if (!next.hasAttribute(a.name) && !(a.name === "open" && now.nodeName === "DETAILS")) now.removeAttribute(a.name);
    }
    for (const a of next.attributes) {
      if (now.getAttribute(a.name) !== a.value) now.setAttribute(a.name, a.value);
    }
    children(now, next);
  };

  const children = (now, next) => {
    const byId = new Map();
    for (const c of now.children) if (c.id) byId.set(c.id, c);
    let at = now.firstChild;
    for (const c of next.childNodes) {
      const known = c.id && byId.get(c.id);
      if (known) {
        if (known !== at) now.insertBefore(known, at);
        else at = at.nextSibling;
        if (!known.isEqualNode(c)) {
          same(known, c);
          flash(document.getElementById(c.id));
        }
        continue;
      }
      if (at && !at.id && at.nodeType === c.nodeType && at.nodeName === c.nodeName && !c.id) {
        const here = at;
        at = at.nextSibling;
        same(here, c);
        continue;
      }
      const fresh = document.importNode(c, true);
      now.insertBefore(fresh, at);
    }
    while (at) {
      const gone = at;
      at = at.nextSibling;
      gone.remove();
    }
  };

  // flash marks a row that has changed, for a moment.
  const flash = (e) => {
    if (e && (e.nodeName === "TR" || e.nodeName === "LI")) e.dataset.fresh = "";
  };

  // plain takes away what this script has added, so that only the server's words are
  // compared.
  const plain = (e) => {
    for (const t of e.querySelectorAll("time[data-age]")) delete t.dataset.age;
    for (const t of e.querySelectorAll("[data-fresh]")) delete t.dataset.fresh;
  };

  const adopt = (doc) => {
    const next = doc.getElementById("content");
    const now = document.getElementById("content");
    if (!next || !now) {
      location.reload();
      return;
    }
    const typing = document.activeElement;
    const filters = now.querySelector("form[data-follow]");
    const theirs = next.querySelector("form[data-follow]");
    // What somebody is about to fill in is theirs.
    if (filters && theirs && filters.contains(typing)) theirs.replaceWith(filters.cloneNode(true));
    plain(now);
    children(now, next);
    const summary = document.getElementById("summary");
    const words = doc.getElementById("summary");
    if (summary && words && summary.textContent !== words.textContent) summary.textContent = words.textContent;
    document.title = doc.title;
    shown = doc.documentElement.dataset.version;
    page.dataset.version = shown || "";
    ages();
  };

  // behind notes that there is something newer than what is shown, and says so unless that
  // comes soon; level that there is not.
  let late = 0;
  const behind = () => {
    if (!late) late = setTimeout(() => say("not up to date", "off"), 500);
  };
  const level = () => {
    clearTimeout(late);
    late = 0;
    if (stream && stream.readyState === EventSource.OPEN) say("live", "on");
  };

  // later asks again for a page that was not to be had.
  const later = () => {
    behind();
    setTimeout(() => { if (!asking && stream) ask(location.href); }, 1000);
  };

  // ask gets the page as it is now. Its text becomes a document that runs no script.
  const ask = (address) => {
    if (asking) asking.abort();
    const x = asking = new XMLHttpRequest();
    x.open("GET", address);
    x.responseType = "document";
    x.onload = () => {
      asking = null;
      if (x.status === 200 && x.response && x.response.getElementById("content") && !x.responseURL.includes("/sign-in")) {
        adopt(x.response);
        level();
        if (told !== shown && stream) {
          behind();
          ask(location.href);
        }
      } else if (x.status !== 200 && x.status < 500) {
        say("not followed", "off");
      } else {
        later();
      }
    };
    x.onerror = () => { asking = null; later(); };
    x.send();
  };

  const follow = () => {
    if (!shown || stream || document.hidden) return;
    stream = new EventSource("/dashboard/live");
    stream.addEventListener("version", (e) => {
      again = 0;
      told = e.data;
      if (told === shown) {
        level();
        return;
      }
      behind();
      if (!asking) ask(location.href);
    });
    stream.onerror = () => {
      clearTimeout(late);
      late = 0;
      say("no connection", "off");
      if (stream && stream.readyState === EventSource.CLOSED) {
        stream = null;
        again = Math.min(again + 1, 6);
        setTimeout(follow, 1000 * 2 ** again);
      }
    };
  };

  // A page that nobody looks at asks for nothing: browsers have few connections to a
  // server.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && stream) {
      stream.close();
      stream = null;
    } else {
      follow();
    }
  });

  const ages = () => {
    const now = Date.now();
    for (const t of document.getElementsByTagName("time")) {
      const s = Math.round((now - Date.parse(t.dateTime)) / 1000);
      const a = Math.abs(s);
      const words = a < 60 ? a + " s" : a < 3600 ? Math.floor(a / 60) + " min" : a < 86400 ? Math.floor(a / 3600) + " h" : Math.floor(a / 86400) + " d";
      const text = s >= 0 ? words + " ago" : "in " + words;
      if (t.dataset.age !== text) t.dataset.age = text;
    }
  };

  // Filters are sent as they are typed, and the page stays.
  let wait = 0;
  document.addEventListener("input", (e) => {
    const form = e.target.closest && e.target.closest("form[data-follow]");
    if (!form) return;
    clearTimeout(wait);
    wait = setTimeout(() => {
      const q = new URLSearchParams(new FormData(form));
      for (const [k, v] of [...q]) if (v === "") q.delete(k);
      const address = form.action + (q.size ? "?" + q : "");
      history.replaceState(null, "", address);
      ask(address);
    }, 150);
  });

  // The map says which proxy is under the pointer, and leads there.
  const square = (e) => {
    const strip = e.target.closest && e.target.closest("svg.strip");
    if (!strip) return null;
    const box = strip.getBoundingClientRect();
    const down = Number(strip.dataset.down);
    const pitch = box.height / down;
    const n = Math.floor((e.clientX - box.left) / pitch) * down + Math.floor((e.clientY - box.top) / pitch);
    const cell = strip.closest("td");
    const head = strip.closest("table").tHead.rows[0].cells[cell.cellIndex];
    if (strip.names !== head.dataset.names) {
      strip.names = head.dataset.names;
      strip.list = JSON.parse(strip.names);
    }
    const id = strip.list[n];
    const letter = strip.dataset.marks[n];
    if (!id || !letter) return null;
    const state = document.querySelector('select[name="state"] option[value="' + CSS.escape(letter) + '"]');
    return { id, state: state ? state.textContent : "Not selected", row: cell.parentElement.cells[0].querySelector("a").textContent };
  };
  document.addEventListener("pointermove", (e) => {
    const p = document.getElementById("pointer");
    if (!p) return;
    const at = square(e);
    p.hidden = !at;
    if (!at) return;
    p.textContent = at.row + " on " + at.id + ": " + at.state.toLowerCase();
    p.style.left = Math.min(e.clientX + 14, innerWidth - p.offsetWidth - 8) + "px";
    p.style.top = Math.min(e.clientY + 16, innerHeight - p.offsetHeight - 8) + "px";
  });
  document.addEventListener("click", (e) => {
    const at = square(e);
    if (!at) return;
    const [namespace, name] = at.id.split("/");
    location.assign("/dashboard/proxies/" + encodeURIComponent(namespace) + "/" + encodeURIComponent(name));
  });

  ages();
  setInterval(ages, 1000);
  follow();
})();
