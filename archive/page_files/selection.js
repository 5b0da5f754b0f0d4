// Images that a person has selected, over all searches of a visit; their list, and their files, to take away.

import { isPlaced } from "./map.js";
import { answerTo, at, count, create, responseTo, say, versionOf } from "./elements.js";

const selected = new Map(); // key of an image -> {query, hit}
let page = { query: "", hits: [], more: null, total: 0 };
let limits = null; // of a list and of an archive, as the server tells

const key = (hit) => hit.image ?? hit.name;

export const isSelected = (hit) => selected.has(key(hit));

export function select(hit, whether) {
  if (whether) selected.set(key(hit), { query: page.query, hit });
  else selected.delete(key(hit));
  refresh();
}

/** What the page shows: its query in words, and how to ask for more of it than a page. */
export function setPage(query, hits, total, more) {
  page = { query, hits, total, more };
  refresh();
}

function refresh() {
  const placed = page.hits.some(isPlaced) || [...selected.values()].some(({ hit }) => isPlaced(hit));
  at("list-geojson").hidden = at("list-geojson").disabled = !placed;
  if (!placed && at("list-as").value === "geojson") at("list-as").value = "csv";
  at("selection").hidden = !page.hits.length && !selected.size;
  at("selected").textContent = selected.size ? `${count(selected.size, "image")} selected` : "";
  at("select-none").disabled = at("zip").disabled = !selected.size;
  at("selection").classList.toggle("stays", selected.size > 0);
  const all = page.total > limits.list ? `the best ${count(limits.list, "image")}` : "all found";
  at("list").textContent = selected.size ? "Save list" : `Save list of ${all}`;
  at("list").disabled = !selected.size && !page.more;
}

function selectAll(whether) {
  if (!whether) selected.clear();
  for (const hit of whether ? page.hits : []) selected.set(key(hit), { query: page.query, hit });
  for (const box of document.querySelectorAll("#results .pick input")) box.checked = whether;
  refresh();
}

/** The rows of the list: of what is selected, else of all that was found, as far as a list goes. */
async function listed() {
  let entries = [...selected.values()];
  if (!entries.length) {
    const [url, settings] = page.more(Math.min(page.total, limits.list));
    const found = await answerTo(url, settings);
    entries = found.hits.map((hit) => ({ query: page.query, hit }));
  }
  return entries.map(({ query, hit }) => ({
    query,
    rank: hit.rank ?? null,
    score: hit.score ?? null,
    name: hit.name,
    scene: hit.scene,
    bounds: hit.bounds, // west, south, east, north
  }));
}

/** A cell of a table; what a spreadsheet would take for a formula is kept from being one. */
function cell(value) {
  if (value === null) return "";
  let text = String(value);
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table(rows) {
  const columns = ["query", "rank", "score", "name", "scene"];
  const sides = rows.some(isPlaced) ? ["west", "south", "east", "north"] : [];
  const cells = (row) => [...columns.map((column) => row[column]), ...sides.map((_, side) => row.bounds?.[side] ?? null)];
  return [[...columns, ...sides], ...rows.map(cells)]
    .map((line) => `${line.map(cell).join(",")}\r\n`)
    .join("");
}

/** The geometry of an image; of two parts where it lies across the date line. */
export function geometry({ bounds }) {
  if (!bounds) return null;
  const [west, south, east, north] = bounds;
  const spans = west <= east ? [[west, east]] : [[west, 180], [-180, east]];
  const rings = spans.map(([w, e]) => [[[w, south], [e, south], [e, north], [w, north], [w, south]]]);
  return rings.length === 1 ? { type: "Polygon", coordinates: rings[0] } : { type: "MultiPolygon", coordinates: rings };
}

function features(rows) {
  const all = rows.map((row) => {
    const { bounds, ...properties } = row;
    return { type: "Feature", geometry: geometry(row), properties };
  });
  return `${JSON.stringify({ type: "FeatureCollection", features: all })}\n`;
}

const FORMS = {
  csv: ["text/csv", table],
  json: ["application/json", (rows) => `${JSON.stringify(rows, null, 1)}\n`],
  geojson: ["application/geo+json", features],
};

function save(content, name) {
  const link = create("a", "");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function downloadList() {
  const ending = at("list-as").value;
  const [type, written] = FORMS[ending];
  save(new Blob([written(await listed())], { type }), `images.${ending}`);
}

async function downloadImages() {
  const rows = [...selected.values()].map(({ hit }) => hit).filter((hit) => hit.row !== null);
  if (rows.length > limits.zip) {
    throw new Error(`${count(rows.length, "image")} are selected, at most ${limits.zip} are sent at once.`);
  }
  const [index, ...others] = new Set(rows.map(versionOf));
  if (others.length) {
    throw new Error("The index has changed since some of these images were selected: clear the selection and choose again.");
  }
  const parameters = new URLSearchParams({ rows: rows.map((hit) => hit.row).join(","), index });
  save(await (await responseTo(`api/zip?${parameters}`)).blob(), "images.zip");
}

/** Do what a button stands for; it rests meanwhile, and a fault is told. */
async function press(button, work) {
  button.disabled = true;
  say("error", "");
  try {
    await work();
  } catch (fault) {
    say("error", fault.message);
    at("error").scrollIntoView({ block: "nearest" });
  }
  refresh();
}

export function listen(about) {
  limits = { list: about.most_in_list, zip: about.most_in_zip };
  at("select-page").addEventListener("click", () => selectAll(true));
  at("select-none").addEventListener("click", () => selectAll(false));
  for (const [id, work] of [["list", downloadList], ["zip", downloadImages]]) {
    at(id).addEventListener("click", () => press(at(id), work));
  }
}
