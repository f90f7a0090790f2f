"use strict";
// Asks this node how the cluster is, once a second while the page is looked at, and shows it. All that it gets is data:
// it reaches the page as textContent and as numbers in attributes, never as markup.

const PERIOD_MS = 1000, TIMEOUT_MS = 6000, WINDOW_S = 120;
const byId = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const known = (value) => value !== null && value !== undefined;

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function put(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Have one child of `parent` for each item, in order; those of the same key stay. */
function sync(parent, items, keyOf, template, update) {
  const former = new Map([...parent.children].map((each) => [each.dataset.key, each]));
  items.forEach((item, at) => {
    const key = String(keyOf(item));
    let element = former.get(key);
    if (element) {
      former.delete(key);
    } else {
      element = byId(template).content.firstElementChild.cloneNode(true);
      element.dataset.key = key;
    }
    if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] || null);
    const parts = {};
    for (const part of element.querySelectorAll("[data-is]")) parts[part.dataset.is] ||= part;
    update(element, parts, item);
  });
  for (const element of former.values()) element.remove();
}

function count(value) {
  return known(value) ? number.format(value) : "–";
}

/** A count in little room; all of it shows when one points at it. */
function sayShort(element, value) {
  const text = !known(value) || value < 1e5 ? count(value) : value < 1e6 ? `${Math.floor(value / 1e3)} k` : `${(value / 1e6).toFixed(1)} M`;
  say(element, text);
  put(element, "title", known(value) ? count(value) : "");
}

function rate(value) {
  if (!known(value)) return "–";
  return value > 0 && value < 10 ? value.toFixed(1) : number.format(value);
}

function bytes(value) {
  if (!known(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${at && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

function span(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function times(found) {
  if (!known(found)) return "";
  const [half, most] = found.map((each) => (each < 10 ? each.toFixed(1) : String(Math.round(each))));
  return `p50 ${half} ms · p99 ${most} ms`;
}

function showNode(row, parts, node) {
  say(parts.node, node.node);
  parts.here.hidden = !node.here;
  const role = node.answers ? node.role || "unknown" : "no answer";
  say(parts.role, role);
  const look = { leader: "leader", follower: "", "no answer": "gone" };
  put(parts.role, "class", `role ${role in look ? look[role] : "unsettled"}`.trim());
  put(row, "class", node.answers ? "" : "gone");
  sayShort(parts.lag, node.lag);
  put(parts.lag, "class", node.lag > 1000 ? "n behind" : "n");
  sayShort(parts.applied, node.applied);
  say(parts.log, bytes(node.log_bytes));
  put(parts.log, "title", `${count(node.log_entries)} entries`);
  say(parts.data, bytes(node.data_bytes));
  sayShort(parts.clients, node.connections);
  say(parts.up, span(node.uptime));
}

function drawLine(parts, name, points, peak) {
  const places = points.map(([x, value]) => `${x.toFixed(2)},${(38 - (value / peak) * 34).toFixed(2)}`);
  put(parts[`${name}-line`], "points", places.join(" "));
  if (name !== "reads") return;
  const area = points.length ? [`${points[0][0].toFixed(2)},40`, ...places, `${points.at(-1)[0].toFixed(2)},40`] : [];
  put(parts["reads-area"], "points", area.join(" "));
}

function showGroup(view, card, parts, group) {
  const isManagers = group.group === "m";
  say(parts.title, isManagers ? "Managers" : `Partition ${group.group.slice(1)}`);
  say(parts.group, group.group);
  say(parts.leads, group.leader ? `${group.leader} leads` : "no leader");
  say(parts.term, known(group.term) ? `term ${count(group.term)}` : "");
  say(parts.owns, group.owns.replace(`${group.group} `, ""));
  card.classList.toggle("headless", !group.leader);
  parts.load.hidden = isManagers;
  if (!isManagers) {
    say(parts.reads, rate(group.reads_per_second));
    say(parts.writes, rate(group.writes_per_second));
    say(parts["reads-ms"], times(group.reads_ms));
    say(parts["writes-ms"], times(group.writes_ms));
    const lines = { reads: [], writes: [] };
    let peak = 0;
    for (const { at, rates } of view.history) {
      const x = WINDOW_S - (view.at - at) / 1000;
      const [reads, writes] = rates[group.group] || [0, 0];
      if (x < 0) continue;
      lines.reads.push([x, reads || 0]);
      lines.writes.push([x, writes || 0]);
      peak = Math.max(peak, reads || 0, writes || 0);
    }
    for (const name of ["reads", "writes"]) drawLine(parts, name, lines[name], peak || 1);
    say(parts.peak, peak ? `peak ${rate(peak)}/s` : "idle");
  }
  sync(parts.nodes, group.nodes, (node) => node.node, "node", showNode);
}

const EVENTS = {
  leader: [(e) => `${e.node} leads in term ${count(e.term)}`, "good"],
  "no leader": [() => "nobody leads", "bad"],
  lost: [(e) => `${e.node} is lost: it does not answer`, "bad"],
  back: [(e) => `${e.node} is back`, "good"],
  "snapshot begun": [(e) => `${e.by} streams a snapshot to ${e.node}`, ""],
  "snapshot sent": [(e) => `${e.node} has the snapshot of ${e.by}`, "good"],
  "snapshot given up": [(e) => `the snapshot of ${e.by} for ${e.node} was given up`, "bad"],
  "snapshot installed": [(e) => `${e.node} has put a snapshot in the place of its state`, ""],
};

function showEvent(view, row, parts, event) {
  const [textOf, tone] = EVENTS[event.what] || [() => String(event.what), ""];
  const ago = Math.max(0, (view.at - event.at) / 1000);
  say(parts.time, ago < 1.5 ? "just now" : `${span(ago)} ago`);
  put(parts.time, "datetime", new Date(event.at).toISOString());
  put(parts.time, "title", new Date(event.at).toLocaleString());
  say(parts.group, event.group);
  say(parts.text, textOf(event));
  put(parts.text, "class", tone);
}

function show(view) {
  say(byId("cluster"), view.cluster ? `cluster ${view.cluster}` : "");
  say(byId("here"), `as ${view.here} sees it`);
  const health = byId("health");
  say(health, view.well ? "well" : view.ailments.length === 1 ? "1 thing is wrong" : `${view.ailments.length} things are wrong`);
  put(health, "class", `health ${view.well ? "well" : "unwell"}`);
  const list = byId("ailments");
  list.hidden = view.well;
  list.replaceChildren(...view.ailments.map((line) => {
    const item = document.createElement("li");
    item.textContent = line;
    return item;
  }));
  sync(byId("groups"), view.groups, (group) => group.group, "group", (card, parts, group) => showGroup(view, card, parts, group));
  byId("no-events").hidden = view.events.length > 0;
  const keyOf = (event) => [event.what, event.group, event.node, event.by, event.term, Math.round(event.at / 2000)].join("|");
  const unique = [...new Map(view.events.map((event) => [keyOf(event), event])).values()];
  sync(byId("events"), unique, keyOf, "event", (row, parts, event) => showEvent(view, row, parts, event));
  document.title = `${view.well ? "" : "! "}MadKV ${view.here}`;
}

let lastSeen = null, timer = null, isAsking = false;

async function ask() {
  if (isAsking) return;
  isAsking = true;
  const began = performance.now();
  const live = byId("live"), gone = byId("gone");
  try {
    const answer = await fetch("/cluster.json", { signal: AbortSignal.timeout(TIMEOUT_MS) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    show(await answer.json());
    lastSeen = new Date();
    say(live, "live");
    put(live, "class", "live on");
    gone.hidden = true;
  } catch (error) {
    say(live, "no answer");
    put(live, "class", "live");
    say(byId("health"), "not known");
    put(byId("health"), "class", "health");
    const since = lastSeen ? `; this is how the cluster was at ${lastSeen.toLocaleTimeString()}` : "";
    say(gone, `This node does not answer${since}. The page of any other node shows the same cluster.`);
    gone.hidden = false;
  }
  byId("all").classList.toggle("stale", !gone.hidden);
  isAsking = false;
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(ask, Math.max(100, PERIOD_MS - (performance.now() - began)));
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
ask();
