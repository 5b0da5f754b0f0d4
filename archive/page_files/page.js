"use strict";

const at = (id) => document.getElementById(id);
const MIB = 2 ** 20;
const HINT = "Say what the image shows, or drop an image anywhere on this page.";

let about = null; // what is searched, as the server tells
let asked = { q: "", scene: "", page: 1, file: null }; // what the page shows; file: key of `files`
const files = new Map(); // query files, for going back and to other pages: {file, sound}
let running = null;

/** Ask the server; an Error carries its message. */
async function answerOf(url, settings) {
  const response = await fetch(url, settings);
  const text = await response.text();
  let answer = {};
  try {
    answer = JSON.parse(text);
  } catch {
    answer = { detail: text || `${response.status} ${response.statusText}` };
  }
  if (!response.ok) throw new Error(answer.detail);
  return answer;
}

function say(id, text) {
  at(id).textContent = text;
  at(id).hidden = !text;
}

function create(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

function gone() {
  return create("span", "gone", "This image can't be read.");
}

function frame(hit) {
  const holder = create("span", "frame");
  if (!hit.thumbnail) {
    holder.append(gone());
    return holder;
  }
  const image = document.createElement("img");
  image.alt = hit.name;
  image.addEventListener("error", () => image.replaceWith(gone()));
  image.src = hit.thumbnail;
  holder.append(image);
  return holder;
}

function card(hit) {
  const item = document.createElement("li");
  const link = create(hit.image ? "a" : "div", "card");
  const line = create("span", "line");
  line.append(create("span", "rank", String(hit.rank)), create("span", "score", hit.score.toFixed(4)));
  link.append(frame(hit), line, create("span", "name", hit.name));
  if (hit.image) {
    link.href = hit.image;
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      view(hit);
    });
  }
  item.append(link);
  return item;
}

function view(hit) {
  at("whole").src = hit.image;
  at("whole").alt = hit.name;
  at("alone").href = hit.image;
  at("whole-name").textContent = `${hit.rank}: ${hit.name}, score ${hit.score.toFixed(4)}`;
  at("viewer").showModal();
}

/** Put what is asked into the page's fields. */
function fill() {
  const upload = files.get(asked.file);
  at("query").value = asked.q;
  at("scene").value = asked.scene;
  at("asked").hidden = !upload;
  at("asked-name").textContent = upload ? upload.file.name : "";
  document.title = asked.q ? `${asked.q} – RSRetrieval` : "RSRetrieval";
}

function clear() {
  at("results").replaceChildren();
  at("results").setAttribute("aria-busy", "false");
  at("pager").hidden = true;
  at("preview").hidden = true;
  for (const id of ["error", "note"]) say(id, "");
  at("status").textContent = "";
}

function request() {
  const parameters = new URLSearchParams({ page: asked.page, per_page: about.per_page });
  if (asked.scene) parameters.set("scene", asked.scene);
  const upload = files.get(asked.file);
  if (!upload) {
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

/** Search with what is asked, and show what is found. */
async function run() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  fill();
  if (!asked.q && !files.has(asked.file)) {
    clear();
    at("status").textContent = HINT;
    at("query").focus();
    return;
  }
  at("results").setAttribute("aria-busy", "true");
  at("status").textContent = "Searching …";
  try {
    const [url, settings] = request();
    const found = await answerOf(url, { ...settings, signal });
    clear();
    show(found);
  } catch (fault) {
    if (signal.aborted) return;
    clear();
    say("error", fault.message);
  }
}

function show(found) {
  at("results").replaceChildren(...found.hits.map(card));
  const notes = found.unknown_words.length ? [`The model does not know: ${found.unknown_words.join(", ")}.`] : [];
  if (found.note) notes.push(found.note);
  say("note", notes.join(" "));
  if (found.preview) {
    at("preview").src = found.preview;
    at("preview").hidden = false;
  }
  const last = found.hits.length ? found.hits[found.hits.length - 1].rank : 0;
  const first = last - found.hits.length + 1;
  const times = `encoded in ${found.encode_ms.toFixed(1)} ms, searched in ${found.search_ms.toFixed(1)} ms`;
  at("status").textContent = `${first} to ${last} of ${found.total.toLocaleString("en")} images, ${times}`;
  at("place").textContent = `Page ${found.page} of ${found.pages}`;
  at("previous").disabled = found.page <= 1;
  at("next").disabled = found.page >= found.pages;
  at("pager").hidden = found.pages <= 1;
}

/** Search anew and keep the query in the address, for bookmarks and the way back. */
function ask(changes) {
  asked = { ...asked, page: 1, ...changes };
  const parameters = new URLSearchParams();
  if (asked.q) parameters.set("q", asked.q);
  if (asked.scene) parameters.set("scene", asked.scene);
  if (asked.page > 1 && asked.q) parameters.set("page", asked.page);
  history.pushState(asked, "", parameters.size ? `?${parameters}` : "./");
  window.scrollTo(0, 0);
  return run();
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
  ask({ q: "", file: key });
}

function readAddress(state) {
  const parameters = new URLSearchParams(location.search);
  const page = Number.parseInt(parameters.get("page") ?? "1", 10);
  asked = {
    q: parameters.get("q") ?? "",
    scene: parameters.get("scene") ?? "",
    page: page >= 1 ? page : 1,
    file: null,
    ...(state && files.has(state.file) ? state : {}),
  };
  return run();
}

function listen() {
  at("search").addEventListener("submit", (event) => {
    event.preventDefault();
    ask({ q: at("query").value.trim(), file: null });
  });
  at("scene").addEventListener("change", () => ask({ scene: at("scene").value }));
  at("previous").addEventListener("click", () => ask({ page: asked.page - 1 }));
  at("next").addEventListener("click", () => ask({ page: asked.page + 1 }));
  at("forget").addEventListener("click", () => ask({ file: null }));
  for (const [button, input] of [["choose", "image"], ["choose-sound", "sound"]]) {
    at(button).addEventListener("click", () => at(input).click());
    at(input).addEventListener("change", () => {
      askWith(at(input).files[0]);
      at(input).value = "";
    });
  }
  window.addEventListener("popstate", (event) => readAddress(event.state));
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

async function start() {
  try {
    about = await answerOf("api/about");
  } catch (fault) {
    say("error", fault.message);
    return;
  }
  at("about").textContent = `${about.images.toLocaleString("en")} images · ${about.model} · ${about.search} search`;
  at("query").maxLength = about.longest_query;
  at("choose-sound").hidden = !about.audio;
  at("scene-label").hidden = !about.scenes.length;
  for (const scene of about.scenes) {
    const choice = create("option", "", `${scene.name} (${scene.images})`);
    choice.value = scene.name;
    at("scene").append(choice);
  }
  listen();
  await readAddress(null);
}

start();
