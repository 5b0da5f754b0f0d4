// The page: what is asked stands in the address, and what is found below it.

import { card } from "./cards.js";
import { answerTo, at, count, create, say, versionOf } from "./elements.js";
import * as map from "./map.js";
import * as selection from "./selection.js";
import * as viewer from "./viewer.js";
import * as words from "./words.js";

const MIB = 2 ** 20;
const NOTHING = { q: "", scene: "", least: "", page: 1, file: null, like: null };

let about = null; // what is searched, as the server tells
let asked = NOTHING; // what the page shows; file: key of `files`; like: {row, index} of an image of the archive
const files = new Map(); // query files, for going back and to other pages: {file, sound}
let running = null;

const isStart = () => !asked.q && !asked.like && !files.has(asked.file);
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** Put what is asked into the page's fields. */
function fill() {
  const upload = files.get(asked.file);
  at("query").value = asked.q;
  at("scene").value = asked.scene;
  at("least").value = asked.least;
  at("asked").hidden = !upload && !asked.like;
  at("asked-how").textContent = upload ? "Searched with" : "Similar to";
  at("asked-name").textContent = upload ? upload.file.name : "";
  document.title = asked.q ? `${asked.q} – RSRetrieval` : "RSRetrieval";
}

function clear() {
  at("results").replaceChildren();
  at("results").setAttribute("aria-busy", "false");
  for (const id of ["pager", "preview", "start"]) at(id).hidden = true;
  for (const id of ["error", "note"]) say(id, "");
  at("status").textContent = "";
  viewer.setImages([]);
  map.setImages([], open);
  selection.setPage("", [], 0, null);
}

function checkedLength() {
  const { length } = [...asked.q];
  if (length > about.longest_query) {
    throw new Error(
      `This sentence has ${count(length, "character")}, at most ${count(about.longest_query, "character")} are taken.`,
    );
  }
}

/** The request for a page of what is asked. */
function request(page, perPage) {
  const parameters = new URLSearchParams({ page, per_page: perPage });
  if (asked.scene) parameters.set("scene", asked.scene);
  if (asked.least !== "") parameters.set("min_score", asked.least);
  const upload = files.get(asked.file);
  if (asked.like) {
    parameters.set("index", asked.like.index);
    return [`api/search/like/${asked.like.row}?${parameters}`, {}];
  }
  if (!upload) {
    checkedLength();
    parameters.set("q", asked.q);
    return [`api/search?${parameters}`, {}];
  }
  if (upload.file.size > about.max_upload) {
    const size = (upload.file.size / MIB).toFixed(1);
    throw new Error(`${upload.file.name} has ${size} MiB, at most ${about.max_upload / MIB} MiB are taken.`);
  }
  const body = new FormData();
  body.append(upload.sound ? "sound" : "image", upload.file);
  return [`api/search/${upload.sound ? "audio" : "image"}?${parameters}`, { method: "POST", body }];
}

/** Search with what is asked, or begin, and show what is found. */
async function run() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const held = at("results").contains(document.activeElement);
  fill();
  at("results").setAttribute("aria-busy", "true");
  at("status").textContent = isStart() ? "" : "Searching …";
  try {
    if (isStart()) await begin(signal);
    else await search(signal);
    if (held) at("results").focus({ preventScroll: true });
  } catch (fault) {
    if (signal.aborted) return;
    clear();
    say("error", fault.message);
  }
}

async function search(signal) {
  const [url, settings] = request(asked.page, about.per_page);
  const found = await answerTo(url, { ...settings, signal });
  clear();
  const notes = found.unknown_words.length ? [`The model does not know: ${found.unknown_words.join(", ")}.`] : [];
  if (found.note) notes.push(found.note);
  say("note", notes.join(" "));
  const preview = found.preview ?? found.like?.thumbnail;
  if (preview) at("preview").src = preview;
  at("preview").hidden = !preview;
  if (found.like) at("asked-name").textContent = found.like.name;
  showImages(found.hits, found.total, (perPage) => request(1, perPage));
  at("status").textContent = summary(found);
  at("place").textContent = `Page ${found.page} of ${found.pages}`;
  at("previous").disabled = found.page <= 1;
  at("next").disabled = found.page >= found.pages;
  at("pager").hidden = found.pages <= 1;
}

function summary(found) {
  if (!found.hits.length) return asked.least === "" ? "Nothing was found." : `No image has a score of ${asked.least}.`;
  const first = found.hits[0].rank;
  const last = found.hits[found.hits.length - 1].rank;
  const encoded = found.like ? "" : `encoded in ${found.encode_ms.toFixed(1)} ms, `;
  return `${first} to ${last} of ${count(found.total, "image")}, ${encoded}searched in ${found.search_ms.toFixed(1)} ms`;
}

/** The start page: examples, and images of the archive, others each time. */
async function begin(signal) {
  const parameters = new URLSearchParams({ count: about.per_page });
  if (asked.scene) parameters.set("scene", asked.scene);
  const { images } = await answerTo(`api/sample?${parameters}`, { signal });
  clear();
  at("start").hidden = false;
  at("status").textContent = `${count(images.length, "image")}, chosen at random`;
  showImages(images, images.length, null);
}

function showImages(images, total, more) {
  const actions = {
    isSelected: selection.isSelected,
    select: selection.select,
    similar: askLike,
    open,
  };
  viewer.setImages(images);
  map.setImages(images, open);
  selection.setPage(asked.q || at("asked-name").textContent, images, total, more);
  at("results").replaceChildren(...images.map((image, place) => card(image, place, actions)));
}

function open(place) {
  history.pushState({ ...asked, view: place }, "");
  viewer.show(place);
}

function address() {
  const parameters = new URLSearchParams();
  for (const name of ["q", "scene", "least"]) if (asked[name] !== "") parameters.set(name, asked[name]);
  if (asked.like) for (const name of ["row", "index"]) parameters.set(name, asked.like[name]);
  if (asked.page > 1 && !asked.file) parameters.set("page", asked.page);
  return parameters.size ? `?${parameters}` : "./";
}

/** Search anew and keep the query in the address, for bookmarks and the way back; the same query is kept once. */
function ask(changes) {
  const before = asked;
  asked = { ...asked, page: 1, ...changes };
  if (same(asked, before)) history.replaceState(asked, "");
  else history.pushState(asked, "", address());
  viewer.hide(false);
  window.scrollTo(0, 0);
  return run();
}

function askLike(hit) {
  return ask({ q: "", file: null, like: { row: hit.row, index: versionOf(hit) } });
}

function askWith(file) {
  if (!file) return;
  const sound = file.type.startsWith("audio/") || /\.wav$/i.test(file.name);
  if (sound && !about.audio) {
    say("error", `${file.name}: ${about.model} has no audio encoder; search with a sentence or an image.`);
    return;
  }
  const key = crypto.randomUUID?.() ?? String(Math.random());
  files.set(key, { file, sound });
  ask({ q: "", like: null, file: key });
}

/** What a state of the history, or else the address, asks for. */
function read(state) {
  if (state && (!state.file || files.has(state.file))) {
    const { view, ...search } = state;
    return search;
  }
  const parameters = new URLSearchParams(location.search);
  const page = Number.parseInt(parameters.get("page") ?? "1", 10);
  const row = parameters.get("row");
  return {
    ...NOTHING,
    q: parameters.get("q") ?? "",
    scene: parameters.get("scene") ?? "",
    least: parameters.get("least") ?? "",
    page: page >= 1 ? page : 1,
    like: row === null ? null : { row, index: parameters.get("index") ?? "" },
  };
}

/** Follow the history: to another search, or in the same one into the viewer or out of it. */
async function follow(state) {
  const wanted = read(state);
  if (!same(wanted, asked)) {
    viewer.hide(false);
    asked = wanted;
    await run();
  }
  if (state?.view === undefined) viewer.hide();
  else if (same(wanted, asked)) viewer.show(state.view);
}

function listenToFiles() {
  for (const [button, input] of [["choose", "image"], ["choose-sound", "sound"]]) {
    at(button).addEventListener("click", () => at(input).click());
    at(input).addEventListener("change", () => {
      askWith(at(input).files[0]);
      at(input).value = "";
    });
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    askWith(event.dataTransfer.files[0]);
  });
}

function listen() {
  at("search").addEventListener("submit", (event) => {
    event.preventDefault();
    ask({ q: at("query").value.trim(), file: null, like: null });
  });
  at("scene").addEventListener("change", () => ask({ scene: at("scene").value }));
  at("least").addEventListener("change", () => ask({ least: at("least").value }));
  at("previous").addEventListener("click", () => ask({ page: asked.page - 1 }));
  at("next").addEventListener("click", () => ask({ page: asked.page + 1 }));
  at("forget").addEventListener("click", () => ask({ file: null, like: null }));
  at("others").addEventListener("click", run);
  listenToFiles();
  viewer.listen(askLike);
  map.listen();
  selection.listen(about);
  if (about.words) words.listen();
  window.addEventListener("popstate", (event) => follow(event.state));
}

/** Put what the server tells of itself onto the page. */
function introduce() {
  at("about").textContent = `${count(about.images, "image")} · ${about.model} · ${about.search} search`;
  at("choose-sound").hidden = !about.audio;
  at("scene-label").hidden = !about.scenes.length;
  for (const scene of about.scenes) {
    const choice = create("option", "", `${scene.name} (${scene.images})`);
    choice.value = scene.name;
    at("scene").append(choice);
  }
  at("examples").hidden = !about.examples.length;
  for (const example of about.examples) {
    const link = create("a", "example", example);
    link.href = `?${new URLSearchParams({ q: example })}`;
    at("examples").append(" ", link);
  }
}

async function start() {
  try {
    about = await answerTo("api/about");
  } catch (fault) {
    say("error", fault.message);
    return;
  }
  introduce();
  listen();
  const { state } = history;
  asked = read(state);
  if (isStart()) at("query").focus();
  history.replaceState({ ...asked, ...(state?.view === undefined ? {} : { view: state.view }) }, "");
  await run();
  if (state?.view !== undefined) viewer.show(state.view);
}

start();
