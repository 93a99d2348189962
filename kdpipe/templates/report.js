"use strict";
document.documentElement.classList.add("script");

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const collator = new Intl.Collator("en", { numeric: true });
let made = 0;

/** Make an element; text never becomes markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Wait until input has paused, so that a long table is not filtered at every key. */
function paused(action) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(action, 120); };
}

// sorting and searching small tables

const NUMBER = /^(?:< |[+\-\u2212])?\d[\d.,]*(?:e[+-]?\d+)?(?: ?(?:±|to) ?[+\-\u2212]?[\d.]+)?(?: ?(?:M|G|%|points|mm|voxel|ml|s))?$/;
const isGap = (text) => text === "" || text === "-" || text === "not known";
const toNumber = (text) => parseFloat(text.replace("< ", "").replace("\u2212", "-"));

function setUpTable(table) {
  const heads = all("thead th", table);
  const body = table.tBodies[0];
  const rows = [...body.rows];
  heads.forEach((head, column) => {
    const texts = rows.map((row) => row.cells[column].textContent.trim());
    const numeric = texts.some((text) => !isGap(text))
      && texts.every((text) => isGap(text) || NUMBER.test(text));
    if (numeric) {
      head.classList.add("number");
      rows.forEach((row) => row.cells[column].classList.add("number"));
    }
    const name = head.textContent;
    head.replaceChildren(make("button", { type: "button", onclick: () => sort(column, numeric) }, name));
  });

  function sort(column, numeric) {
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const keyed = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
    keyed.sort(([a], [b]) => {
      if (isGap(a) || isGap(b)) return isGap(a) - isGap(b); // gaps last, whatever the direction
      const order = numeric ? toNumber(a) - toNumber(b) : collator.compare(a, b);
      return descending ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
  }
}

function setUpSearch(input) {
  const target = document.getElementById(input.dataset.search);
  const count = make("output", { class: "count" });
  input.parentElement.after(count);
  input.addEventListener("input", paused(() => {
    const terms = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = all("tbody tr", target);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !terms.every((term) => text.includes(term));
    }
    const left = rows.filter((row) => !row.hidden).length;
    count.textContent = terms.length ? `${left} of ${rows.length} rows in the tables below` : "";
  }));
}

// tabs

function setUpTabs(container) {
  const panels = all(":scope > .panel", container);
  if (panels.length < 2) return;
  container.classList.add("tabbed");
  const list = make("div", { role: "tablist", "aria-label": container.dataset.label });
  const tabs = panels.map((panel, index) => {
    const id = `tab-${made++}`;
    panel.id = panel.id || `panel-${id}`;
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", id);
    return make("button", {
      type: "button", role: "tab", id, "aria-controls": panel.id, onclick: () => show(index),
    }, panel.dataset.title);
  });
  list.append(...tabs);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = (tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length;
    show(next);
    tabs[next].focus();
  });
  container.prepend(list);
  show(0);

  function show(chosen) {
    panels.forEach((panel, index) => { panel.hidden = index !== chosen; });
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
    });
  }
}

// pictures

function setUpEnlarging() {
  const dialog = document.getElementById("enlarged");
  for (const button of all(".enlarge")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      dialog.querySelector("img").src = image.src;
      dialog.querySelector("img").alt = image.alt;
      dialog.querySelector("p").textContent = button.parentElement.querySelector("figcaption").textContent;
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

function setUpLeafing(book) {
  const pages = all("figure", book);
  const select = book.querySelector("select");
  const count = book.querySelector(".count");
  let current = 0;
  let within = select;
  let group = "";
  pages.forEach((page, index) => {
    const name = page.dataset.group;
    if (name !== group) {
      group = name;
      within = name ? select.appendChild(make("optgroup", { label: name })) : select;
    }
    const title = page.querySelector("figcaption strong").textContent;
    within.append(make("option", { value: String(index) }, title));
  });
  const show = (index) => {
    current = (index + pages.length) % pages.length;
    pages.forEach((page, at) => { page.hidden = at !== current; });
    select.value = String(current);
    count.textContent = `${current + 1} of ${pages.length}`;
  };
  select.addEventListener("change", () => show(Number(select.value)));
  for (const button of all("[data-step]", book)) {
    button.addEventListener("click", () => show(current + Number(button.dataset.step)));
  }
  book.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.target === select) return;
    event.preventDefault();
    show(current + step);
  });
  show(0);
}

// large tables: columns in memory, only what can be seen in the document

const ROW = 28; // pixels, as in the style
const BEYOND = 10; // rows drawn above and below what can be seen
const CHOICES = 200; // a column with more distinct values gets no list to choose from

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const isNumeric = (column) => column.numbers !== undefined;
const rawText = (column, row) => (isNumeric(column)
  ? (column.numbers[row] === null ? "nan" : String(column.numbers[row]))
  : column.values[column.codes[row]]);

function shownText(column, row) {
  if (!isNumeric(column)) return column.values[column.codes[row]];
  const value = column.numbers[row];
  if (value === null) return "-";
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
}

/** A field of a CSV file; a spreadsheet must not take text from data for a formula. */
function field(column, row) {
  let text = rawText(column, row);
  if (!isNumeric(column) && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function toCsv(columns, rows) {
  const head = columns.map((column) => column.name).join(",");
  const lines = Array.from(rows, (row) => columns.map((column) => field(column, row)).join(","));
  return [head, ...lines, ""].join("\r\n");
}

function filterRows(data, terms, chosen) {
  const texts = data.columns.filter((column) => !isNumeric(column));
  // what a term hits is looked up once a distinct value, not once a row
  const hits = terms.map((term) => texts.map((column) => Uint8Array.from(
    column.values, (value) => Number(value.toLowerCase().includes(term)))));
  const kept = new Int32Array(data.rows);
  let n = 0;
  for (let row = 0; row < data.rows; row++) {
    const fits = chosen.every(([column, code]) => column.codes[row] === code)
      && hits.every((hit) => hit.some((values, index) => values[texts[index].codes[row]]));
    if (fits) kept[n++] = row;
  }
  return kept.subarray(0, n);
}

function sortRows(rows, column, descending) {
  const sign = descending ? -1 : 1;
  let key = column.numbers;
  if (!isNumeric(column)) {
    const rank = new Int32Array(column.values.length);
    column.values.map((_, code) => code)
      .sort((a, b) => collator.compare(column.values[a], column.values[b]))
      .forEach((code, place) => { rank[code] = place; });
    key = column.codes.map((code) => rank[code]);
  }
  return rows.sort((a, b) => {
    if (key[a] === null || key[b] === null) return (key[a] === null) - (key[b] === null) || a - b;
    return sign * (key[a] - key[b]) || a - b;
  });
}

async function setUpLarge(place) {
  if (typeof DecompressionStream === "undefined") {
    place.append(make("p", { class: "missing" },
      `This browser cannot unpack the rows; they are in ${place.dataset.file}.`));
    return;
  }
  const data = await unpack(place.querySelector(".packed").textContent);
  const shown = data.columns.filter((column) => !column.constant);
  const same = data.columns.filter((column) => column.constant && rawText(column, 0) !== "");
  const search = make("input", { type: "search", placeholder: "words, in any order" });
  const tools = make("p", { class: "tools" }, make("label", {}, "Search ", search));
  const selects = shown.filter((column) => !isNumeric(column)
    && column.values.length > 1 && column.values.length <= CHOICES).map((column) => {
    const select = make("select", {}, make("option", { value: "" }, "all"));
    column.values.map((value, code) => [value, code])
      .sort(([a], [b]) => collator.compare(a, b))
      .forEach(([value, code]) => select.append(make("option", { value: String(code) }, value || "(none)")));
    tools.append(make("label", {}, `${title(column)} `, select));
    return [column, select];
  });
  const download = make("button", { type: "button" }, "Download these rows as CSV");
  const count = make("output", { class: "count" });
  tools.append(download, count);

  const heads = shown.map((column) => make("th", { scope: "col" },
    make("button", { type: "button", onclick: () => sort(column) }, title(column))));
  heads.forEach((head, index) => {
    head.style.minWidth = `${Math.min(24, widest(shown[index]) + 1)}ch`;
    head.classList.toggle("number", isNumeric(shown[index]));
  });
  const body = make("tbody");
  const table = make("table", {}, make("caption", { hidden: "" }, place.dataset.label),
    make("thead", {}, make("tr", {}, ...heads)), body);
  table.setAttribute("aria-label", place.dataset.label);
  const view = make("div", {
    class: "window", tabindex: "0", role: "region", "aria-label": `${place.dataset.label}, rows`,
  }, table);
  if (same.length) {
    place.append(make("p", { class: "missing" }, "The same in all rows: "
      + same.map((column) => `${title(column)} ${shownText(column, 0)}`).join(", ") + "."));
  }
  place.append(tools, view);

  let rows = new Int32Array(0);
  let order = null;
  let first = -1;
  search.addEventListener("input", paused(filter));
  selects.forEach(([, select]) => select.addEventListener("change", filter));
  view.addEventListener("scroll", () => requestAnimationFrame(() => draw(false)));
  new ResizeObserver(() => draw(true)).observe(view);
  download.addEventListener("click", save);
  filter();

  function title(column) { return column.name.replaceAll("_", " "); }

  function widest(column) {
    const longest = isNumeric(column) ? 9 : column.values.reduce((n, value) => Math.max(n, value.length), 0);
    return Math.max(longest, title(column).length + 2);
  }

  function filter() {
    const terms = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = selects.filter(([, select]) => select.value !== "")
      .map(([column, select]) => [column, Number(select.value)]);
    rows = filterRows(data, terms, chosen);
    if (order) sortRows(rows, order.column, order.descending);
    const n = (value) => value.toLocaleString("en");
    count.textContent = `${n(rows.length)} of ${n(data.rows)} rows`;
    table.setAttribute("aria-rowcount", String(rows.length + 1));
    view.scrollTop = 0;
    draw(true);
  }

  function sort(column) {
    order = { column, descending: order?.column === column && !order.descending };
    shown.forEach((other, index) => {
      if (other !== column) heads[index].removeAttribute("aria-sort");
      else heads[index].setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    });
    filter();
  }

  function draw(always) {
    const start = Math.max(0, Math.floor(view.scrollTop / ROW) - BEYOND);
    if (start === first && !always) return;
    first = start;
    const end = Math.min(rows.length, start + Math.ceil(view.clientHeight / ROW) + 2 * BEYOND);
    const lines = [];
    for (let at = start; at < end; at++) {
      const cells = shown.map((column) => {
        const text = shownText(column, rows[at]);
        return make("td", isNumeric(column) ? { class: "number" } : { title: text }, text);
      });
      lines.push(make("tr", { "aria-rowindex": String(at + 2) }, ...cells));
    }
    body.replaceChildren(gap(start), ...lines, gap(rows.length - end));
  }

  function gap(n) {
    const cell = make("td", { colspan: String(shown.length) });
    cell.style.height = `${n * ROW}px`;
    return make("tr", { class: "gap", "aria-hidden": "true" }, cell);
  }

  function save() {
    const address = URL.createObjectURL(new Blob([toCsv(data.columns, rows)], { type: "text/csv" }));
    make("a", { href: address, download: place.dataset.file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }
}

// the page

function setUpTheme() {
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  });
}

function setUpPrinting() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])").filter((details) => !details.querySelector("pre"));
    opened.forEach((details) => { details.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
}

all("table.sortable").forEach(setUpTable);
all("[data-search]").forEach(setUpSearch);
all(".tabs").forEach(setUpTabs);
all(".leaf").forEach(setUpLeafing);
setUpEnlarging();
setUpTheme();
setUpPrinting();
all(".large").forEach((place) => setUpLarge(place).catch((error) => {
  place.append(make("p", { class: "missing", role: "alert" }, `The rows could not be shown: ${error}`));
  throw error;
}));
