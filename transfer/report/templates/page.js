"use strict";
// The page is whole without this script. It adds sorting, filtering, and provenance on hover, focus and click.
const SHOWN = 200; // rows of a long table before "show all": laying out ten thousand at once takes seconds

const say = text => { document.getElementById("said").textContent = text; };

function enhance(table) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const keys = new Map(); // column -> what its rows are sorted by, in the order of `rows`
  let text = null; // what the filter looks into: read when it is first used
  let order = Array.from(rows.keys()), shown = rows, wanted = "", whole = rows.length <= SHOWN;
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
  more.textContent = `Show all ${rows.length}`;
  more.addEventListener("click", () => { whole = true; draw(); });
  bar.append(label, count, more);
  if (rows.length > 3) table.closest(".scroll").before(bar);

  // Moves only the rows that are seen: the order of hidden ones does not matter, and moving ten thousand takes a second.
  function draw(named) {
    let found = order;
    if (wanted) {
      text ||= rows.map(row => row.textContent.toLowerCase());
      found = order.filter(i => text[i].includes(wanted));
    }
    const next = (whole ? found : found.slice(0, SHOWN)).map(i => rows[i]);
    if (named && !next.includes(named)) next.push(named);
    const kept = new Set(next);
    for (const row of shown) if (!kept.has(row)) row.hidden = true;
    for (const row of next) { row.hidden = false; row.classList.remove("last-baseline"); }
    const fragment = document.createDocumentFragment();
    fragment.append(...next);
    body.prepend(fragment);
    shown = next;
    more.hidden = whole || found.length <= SHOWN;
    count.textContent = wanted || next.length < rows.length ? `${next.length} of ${rows.length} rows` : "";
  }
  input.addEventListener("input", () => { wanted = input.value.trim().toLowerCase(); draw(); });

  // Numbers as they are; texts by their rank among the column's texts, of which many rows share each; null sorts last.
  function keysOf(column) {
    const values = rows.map(row => {
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
      const sign = direction === "ascending" ? 1 : -1;
      if (!keys.has(column)) keys.set(column, keysOf(column));
      const key = keys.get(column);
      order = Array.from(rows.keys()).sort((a, b) => {
        const x = key[a], y = key[b];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x - y);
      });
      draw();
      say(`Sorted by ${button.textContent.trim()}, ${direction}`);
    });
  }
  more.hidden = true;
  if (!whole) draw();
  table.reveal = row => { if (row.hidden) { input.value = wanted = ""; draw(row); } };
}

function reveal() {
  const row = location.hash.startsWith("#record-") && document.getElementById(location.hash.slice(1));
  for (const old of document.querySelectorAll("tr.named")) old.classList.remove("named");
  if (!row) return;
  row.closest("details").open = true;
  row.closest("table").reveal(row);
  row.classList.add("named");
  row.scrollIntoView({block: "center"});
}

function provenance(link) {
  const cell = link.closest("td"), table = link.closest("table");
  const metric = link.dataset.m, name = cell.parentElement.cells[0].dataset.name;
  const title = `${name}, ${cell.dataset.g}, ${metric}: ${link.textContent.replace(/\s+/g, " ").trim()}`;
  const lines = link.dataset.r.split(" ").map(number => {
    const at = field => document.querySelector(`#record-${number} [data-f=${field}]`);
    const checkpoint = document.getElementById(at("checkpoint").textContent.trim());
    const versions = document.getElementById(at("environment").textContent.trim());
    const value = Array.from(at("metrics").children).find(m => m.dataset.m === metric);
    return {number, parts: [
      `${value ? value.dataset.v : "undefined"}`,
      `pretraining seed ${at("seeds").dataset.p}, evaluation seed ${at("seeds").dataset.e}`,
      `recipe ${at("recipe").textContent.trim()} (${at("recipe").dataset.h})`,
      `checkpoint SHA-256 ${checkpoint.querySelector("[data-f=sha]").textContent.trim()}`,
      `record ${at("path").textContent.trim()}`,
      `job ${at("job").textContent.trim() || "none"} on ${at("host").textContent.trim()}, ${at("finished").textContent.trim()}`,
      `code ${versions.querySelector("[data-f=git]").textContent.trim()}; ${versions.querySelector("[data-f=libraries]").textContent.trim()}`,
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
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not(.records)")) details.open = true;
});
reveal();
document.documentElement.dataset.ready = "yes";
