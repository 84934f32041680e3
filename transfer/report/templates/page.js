"use strict";
// The page is whole without this script, but for the ends of long lists. It adds those, sorting, filtering, and
// provenance on hover, focus and click.
const FIRST = 30; // rows of a long table until a reader comes to the last of them; first.js hides the others till then
const SHOWN = 200; // rows from then on, before "show all": laying out ten thousand at once takes seconds

const say = text => { document.getElementById("said").textContent = text; };

// All checkpoints and records, by column; their tables hold but the first rows. Read when it is first needed.
let read = null;
function lists() {
  if (read) return read;
  read = JSON.parse(document.getElementById("lists").textContent);
  for (const list of [read.checkpoints, read.environments, read.records])
    for (const [name, column] of Object.entries(list)) if (column.of) list[name] = column.at.map(i => column.of[i]);
  return read;
}

const field = (list, name) => i => lists()[list][name][i] ?? "";
const escaped = mark => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`;
const pathOf = i => lists().path[0] + lists().records.path[i] + lists().path[1];
// A half is rounded to the even digit, as in the rows that the page came with.
const hundredths = v => (Math.abs(v) % 0.5 === 0.125 ? v - 0.005 * Math.sign(v) : v).toFixed(2);
const metricsOf = i => {
  const {metrics, values} = lists().records;
  return metrics[i].map((name, k) => `${name} ${values[i][k] === null ? "–" : hundredths(values[i][k])}`).join(", ");
};
// What stands in the cells of row i, and where those lead that are links; the first row shows how they are marked up.
const LISTS = {
  checkpoints: {
    id: i => `C${i + 1}`,
    cells: [i => `C${i + 1}`, ...["label", "recipe", "dataset", "seed", "sha", "file"].map(n => field("checkpoints", n))],
    links: {},
  },
  records: {
    id: i => `record-${i + 1}`,
    cells: [
      i => i + 1, field("records", "label"), field("records", "caption"), field("records", "recipe"),
      i => `${lists().records.pretrained[i] ?? "–"} / ${lists().records.seed[i]}`, metricsOf,
      i => `C${lists().records.checkpoint[i]}`, i => `V${lists().records.environment[i]}`,
      ...["seconds", "job", "host", "finished"].map(n => field("records", n)), pathOf,
    ],
    links: {
      6: i => `#C${lists().records.checkpoint[i]}`,
      7: i => `#V${lists().records.environment[i]}`,
      12: i => pathOf(i).split("/").map(part => encodeURIComponent(part).replace(/[!'()*]/g, escaped)).join("/"),
    },
  },
};

const enhanced = new Map(); // table -> what other parts of the page ask of it

function enhance(table) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows); // those of a list beyond its first are added when they are first shown
  const list = LISTS[table.dataset.list];
  const total = list ? Number(table.dataset.rows) : rows.length;
  const keys = new Map(); // column -> what its rows are sorted by, in the order of `rows`
  let text = null; // what the filter looks into: read when it is first used
  let order = Array.from({length: total}, (_, i) => i), wanted = "", moved = false;
  let limit = total <= FIRST ? Infinity : FIRST;
  const bar = document.createElement("div");
  bar.className = "bar";
  const label = document.createElement("label");
  label.textContent = "Filter ";
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "e.g. part of a name";
  label.append(input);
  const count = document.createElement("span");
  count.className = "soft";
  count.setAttribute("role", "status");
  const more = document.createElement("button");
  more.type = "button";
  more.textContent = `Show all ${total}`;
  more.addEventListener("click", () => { limit = Infinity; draw(); });
  bar.append(label, count, more);
  if (total > 3) table.closest(".scroll").before(bar);

  function rowAt(i) {
    if (rows[i]) return rows[i];
    const row = rows[i] = rows[0].cloneNode(true);
    row.id = list.id(i);
    row.classList.remove("named");
    list.cells.forEach((cell, k) => {
      const inner = row.cells[k].firstElementChild || row.cells[k];
      inner.textContent = cell(i);
      if (list.links[k]) inner.setAttribute("href", list.links[k](i));
    });
    return row;
  }

  const textOf = i => list ? list.cells.map(cell => cell(i)).join(" ") : rows[i].textContent;

  // Only the rows that are seen are in the page: putting ten thousand into another order takes a second. Rows at the
  // top that stay where they are are left alone, and keep the focus.
  function draw(named) {
    let found = order;
    if (wanted) {
      text ||= Array.from({length: total}, (_, i) => textOf(i).toLowerCase());
      found = order.filter(i => text[i].includes(wanted));
    }
    const chosen = found.slice(0, limit);
    if (named !== undefined && !chosen.includes(named)) chosen.push(named);
    const next = chosen.map(rowAt);
    if (moved || wanted) for (const row of next) row.classList.remove("last-baseline");
    const present = Array.from(body.rows);
    let same = 0;
    while (same < next.length && present[same] === next[same]) same++;
    for (const row of present.slice(same)) row.remove();
    body.append(...next.slice(same));
    body.classList.add("drawn");
    tell(next.length, found.length);
  }
  function tell(seen, found) {
    more.hidden = found <= limit;
    count.textContent = wanted || seen < total ? `${seen} of ${total} rows` : "";
    if (seen < total) table.setAttribute("aria-rowcount", total + table.tHead.rows.length);
    else table.removeAttribute("aria-rowcount");
    atEnd.disconnect();
    if (limit === FIRST && found > FIRST) atEnd.observe(body.rows[FIRST - 1]);
  }
  const atEnd = new IntersectionObserver(seen => {
    if (seen.some(s => s.isIntersecting)) { limit = SHOWN; draw(); }
  }, {rootMargin: "500px"});
  input.addEventListener("input", () => { wanted = input.value.trim().toLowerCase(); draw(); });

  // Numbers as they are; texts by their rank among the column's texts, of which many rows share each; null sorts last.
  function keysOf(column) {
    const values = list ? order.map((_, i) => String(list.cells[column](i))) : rows.map(row => {
      const cell = row.children[column];
      return "v" in cell.dataset ? cell.dataset.v : cell.textContent.trim();
    });
    if (!values.some(isNaN)) return values.map(v => v === "" ? null : Number(v));
    const texts = Array.from(new Set(values)).sort(new Intl.Collator(undefined, {numeric: true}).compare);
    const ranks = new Map(texts.map((t, i) => [t, i]));
    return values.map(v => v === "" ? null : ranks.get(v));
  }

  for (const head of table.tHead.querySelectorAll("th[data-sort]")) {
    const column = Number(head.dataset.sort);
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const direction = head.getAttribute("aria-sort") === first ? other : first;
      for (const h of table.tHead.querySelectorAll("[aria-sort]")) h.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction);
      moved = true;
      const sign = direction === "ascending" ? 1 : -1;
      if (!keys.has(column)) keys.set(column, keysOf(column));
      const key = keys.get(column);
      order = Array.from(order.keys()).sort((a, b) => {
        const x = key[a], y = key[b];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x - y);
      });
      draw();
      say(`Sorted by ${button.textContent.trim()}, ${direction}`);
    });
  }
  tell(Math.min(total, limit), total);
  let before = limit;
  enhanced.set(table, {
    reveal: i => {
      if (!(i < total)) return null;
      if (!rowAt(i).isConnected || limit === FIRST) { input.value = wanted = ""; limit = Math.max(limit, SHOWN); draw(i); }
      return rowAt(i);
    },
    complete: () => { before = limit; limit = Infinity; draw(); },
    restore: () => { limit = before; draw(); },
  });
}

function reveal() {
  for (const old of document.querySelectorAll("tr.named")) old.classList.remove("named");
  const [, list, number] = location.hash.match(/^#(record-|C)(\d+)$/) || [];
  if (!list) return;
  const table = document.querySelector(`table[data-list=${list === "C" ? "checkpoints" : "records"}]`);
  const row = enhanced.get(table).reveal(number - 1);
  if (!row) return;
  row.closest("details").open = true;
  row.classList.add("named");
  row.scrollIntoView({block: "center"});
}

function provenance(link) {
  const cell = link.closest("td"), {checkpoints, environments, records} = lists();
  const metric = link.dataset.m, name = cell.parentElement.cells[0].dataset.name;
  const title = `${name}, ${cell.dataset.g}, ${metric}: ${link.textContent.replace(/\s+/g, " ").trim()}`;
  const lines = link.dataset.r.split(" ").map(number => {
    const i = number - 1, at = records.environment[i] - 1;
    return {number, parts: [
      `${records.values[i][records.metrics[i].indexOf(metric)] ?? "undefined"}`,
      `pretraining seed ${records.pretrained[i] ?? "not said"}, evaluation seed ${records.seed[i]}`,
      `recipe ${records.recipe[i]} (${records.hash[i]})`,
      `checkpoint SHA-256 ${checkpoints.sha[records.checkpoint[i] - 1]}`,
      `record ${pathOf(i)}`,
      `job ${records.job[i] || "none"} on ${records.host[i]}, ${records.finished[i]}`,
      `code ${environments.git[at]}; ${environments.libraries[at]}`,
    ]};
  });
  return {title, lines, text: [title, ...lines.map(l => l.parts.join("; "))].join("\n")};
}

const panel = document.createElement("div");
panel.id = "provenance";
panel.setAttribute("role", "tooltip");
panel.hidden = true;
let pinned = null;

function show(link, hint) {
  const found = provenance(link);
  const title = document.createElement("h3");
  title.textContent = found.title;
  const list = document.createElement("ul");
  for (const line of found.lines.slice(0, 20)) {
    const item = document.createElement("li");
    const open = document.createElement("a");
    open.href = `#record-${line.number}`;
    open.textContent = `record ${line.number}`;
    item.append(open, ": ", line.parts.join("; "));
    list.append(item);
  }
  const foot = document.createElement("p");
  foot.className = "hint";
  foot.textContent = hint;
  panel.replaceChildren(title, list, foot);
  panel.hidden = false;
  link.setAttribute("aria-describedby", "provenance");
  const box = link.getBoundingClientRect();
  const left = Math.min(box.left, document.documentElement.clientWidth - panel.offsetWidth - 12);
  const below = box.bottom + panel.offsetHeight + 12 < innerHeight || box.top < panel.offsetHeight + 12;
  panel.style.left = `${Math.max(8, left) + scrollX}px`;
  panel.style.top = `${(below ? box.bottom + 6 : box.top - panel.offsetHeight - 6) + scrollY}px`;
}

function hide() {
  pinned = null;
  panel.hidden = true;
  for (const link of document.querySelectorAll("[aria-describedby=provenance]")) link.removeAttribute("aria-describedby");
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea"); // pages opened from a file may not use the clipboard directly
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("the browser does not allow copying");
  }
}

const linkOf = event => event.target.closest && event.target.closest("a.value");
document.addEventListener("mouseover", event => { const link = linkOf(event); if (link && !pinned) show(link, "Click copies this."); });
document.addEventListener("mouseout", event => { if (linkOf(event) && !pinned) hide(); });
document.addEventListener("focusin", event => { const link = linkOf(event); if (link && !pinned) show(link, "Enter copies this."); });
document.addEventListener("focusout", event => { if (linkOf(event) && !pinned) hide(); });
document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
document.addEventListener("click", event => {
  const link = linkOf(event);
  if (link) {
    event.preventDefault();
    pinned = link;
    const text = provenance(link).text;
    copy(text).then(
      () => { show(link, "Copied. Escape closes this."); say("Provenance copied"); },
      () => { show(link, "The browser does not allow copying; select the text above."); });
  } else if (!panel.contains(event.target)) hide();
  else if (event.target.closest("a")) setTimeout(hide);
});

document.body.append(panel);
for (const table of document.querySelectorAll("table.sortable")) enhance(table);
addEventListener("hashchange", reveal);
// Figures come as text. They are drawn when there is nothing else to do, a few at a time: none of them is at the top.
const held = Array.from(document.querySelectorAll(".picture noscript"));
const drawNext = () => { const text = held.shift(); text.parentElement.innerHTML = text.textContent; };
const idle = window.requestIdleCallback || (work => setTimeout(work, 50));
function drawSome(time) {
  do if (held.length) drawNext(); while (held.length && time && time.timeRemaining() > 5);
  if (held.length) idle(drawSome);
}
addEventListener("load", () => idle(drawSome));

// On paper nothing can be opened or asked for: all of it is there, as sorted and filtered, while the page is printed.
let closed = [];
addEventListener("beforeprint", () => {
  closed = Array.from(document.querySelectorAll("details:not([open])"));
  for (const details of closed) details.open = true;
  while (held.length) drawNext();
  for (const table of enhanced.values()) table.complete();
});
addEventListener("afterprint", () => {
  for (const table of enhanced.values()) table.restore();
  for (const details of closed) details.open = false;
});
reveal();
document.documentElement.dataset.ready = "yes";
