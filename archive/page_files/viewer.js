// The dialog that shows one image of those on the page. It is open exactly while the history says so, so that Back
// closes it, and every other way to close it goes back.

import { at } from "./elements.js";

const STEP = 1.5; // of the zoom
const MOST = 8; // pixels of the screen for one of the image

let hits = [];
let place = 0;
let zoom = null; // null: as large as fits

/** The images that can be looked through. */
export function setImages(images) {
  hits = images;
}

export function show(wanted) {
  if (!hits[wanted]?.image) return;
  place = wanted;
  zoom = null;
  const hit = hits[place];
  at("whole-gone").hidden = true;
  at("whole").hidden = false;
  at("whole").src = at("alone").href = hit.image;
  at("whole-name").textContent = hit.name;
  const facts = hit.rank === undefined ? [] : [`place ${hit.rank}`, `score ${hit.score.toFixed(4)}`];
  if (hit.scene) facts.unshift(hit.scene);
  at("whole-facts").textContent = facts.join(" · ");
  at("before").disabled = neighbour(-1) === null;
  at("after").disabled = neighbour(1) === null;
  if (!at("viewer").open) at("viewer").showModal();
  fit();
}

/** Close it; the card of its image takes the keyboard, unless others will take its place. */
export function hide(returning = true) {
  if (!returning) place = -1;
  at("viewer").close();
}

/** Leave the keyboard where the eye was, and the history where it was before. */
function closed() {
  document.querySelectorAll("#results .open")[place]?.focus();
  if (history.state?.view !== undefined) history.back();
}

/** The next image in a direction that the server has; null: there is none. */
function neighbour(step) {
  for (let next = place + step; next >= 0 && next < hits.length; next += step) if (hits[next].image) return next;
  return null;
}

function step(direction) {
  const next = neighbour(direction);
  if (next === null) return;
  history.replaceState({ ...history.state, view: next }, "");
  show(next);
}

function fitting() {
  const { naturalWidth: width, naturalHeight: height } = at("whole");
  return Math.min(MOST, at("stage").clientWidth / width, at("stage").clientHeight / height);
}

function fit() {
  const image = at("whole");
  if (!image.naturalWidth) return;
  const scale = zoom ?? fitting();
  image.style.width = `${Math.floor(image.naturalWidth * scale)}px`;
  at("zoom").textContent = `${Math.round(100 * scale)} %`;
  at("larger").disabled = scale >= MOST;
  at("fit").disabled = zoom === null;
}

/** Zoom in or out around the middle of what is seen. */
function resize(factor) {
  const stage = at("stage");
  const middle = [stage.scrollLeft + stage.clientWidth / 2, stage.scrollTop + stage.clientHeight / 2];
  const before = at("whole").width;
  zoom = Math.min(MOST, Math.max(Math.min(1, fitting()) / 4, (zoom ?? fitting()) * factor));
  fit();
  const grown = at("whole").width / before;
  stage.scrollTo(middle[0] * grown - stage.clientWidth / 2, middle[1] * grown - stage.clientHeight / 2);
}

const KEYS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  "+": () => resize(STEP),
  "=": () => resize(STEP),
  "-": () => resize(1 / STEP),
  0: () => at("fit").click(),
};

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const scrolls = document.activeElement === at("stage") && at("stage").scrollWidth > at("stage").clientWidth;
  if (!KEYS[event.key] || (event.key.startsWith("Arrow") && scrolls)) return;
  event.preventDefault();
  KEYS[event.key]();
}

/** findSimilar(hit): what its button does. */
export function listen(findSimilar) {
  const viewer = at("viewer");
  viewer.addEventListener("keydown", press);
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close(); // its backdrop: all else lies in its sheet
  });
  viewer.addEventListener("close", closed);
  at("close").addEventListener("click", () => viewer.close());
  at("before").addEventListener("click", () => step(-1));
  at("after").addEventListener("click", () => step(1));
  at("larger").addEventListener("click", () => resize(STEP));
  at("smaller").addEventListener("click", () => resize(1 / STEP));
  at("fit").addEventListener("click", () => {
    zoom = null;
    fit();
  });
  at("whole-similar").addEventListener("click", () => findSimilar(hits[place]));
  at("whole").addEventListener("load", fit);
  at("whole").addEventListener("error", () => {
    at("whole").hidden = true;
    at("whole-gone").hidden = false;
  });
  window.addEventListener("resize", fit);
}
