// The map of what was found: each image where it lies. It has no tiles, so nothing is asked of anybody else.

import { at } from "./elements.js";

let leaflet = null; // loaded when a map is first wanted
let map = null;
let layer = null;
let shown = { hits: [], open: null };

/** Corners south-west and north-east; across the date line the east is beyond 180 degrees. */
const corners = ([west, south, east, north]) => [[south, west], [north, east < west ? east + 360 : east]];

export const isPlaced = (hit) => Boolean(hit.bounds);

async function draw() {
  leaflet ??= await import("../leaflet/leaflet-src.esm.js");
  if (!map) {
    map = leaflet.map("map", { attributionControl: false, maxZoom: 22, zoomSnap: 0.25 });
    leaflet.control.scale({ imperial: false }).addTo(map);
    layer = leaflet.featureGroup().addTo(map);
  }
  layer.clearLayers();
  shown.hits.forEach((hit, place) => {
    if (!isPlaced(hit)) return;
    const bounds = corners(hit.bounds);
    if (hit.thumbnail) leaflet.imageOverlay(hit.thumbnail, bounds).addTo(layer);
    // A box for what is large on the map, a point for what is too small to be seen.
    const marks = [leaflet.rectangle(bounds, { weight: 2, fill: true, fillOpacity: 0, className: "mark" })];
    marks.push(leaflet.circleMarker(leaflet.latLngBounds(bounds).getCenter(), { radius: 3, fillOpacity: 1, className: "mark" }));
    for (const mark of marks) mark.bindTooltip(hit.name).on("click", () => shown.open(place)).addTo(layer);
  });
  map.invalidateSize();
  map.fitBounds(layer.getBounds(), { padding: [20, 20], maxZoom: 18, animate: false });
}

function refresh() {
  at("map").hidden = at("map-toggle").hidden || at("map-toggle").getAttribute("aria-expanded") !== "true";
  return at("map").hidden ? null : draw();
}

/** Show these images, those of them that have a place; open(place of an image): what a click on it does. */
export function setImages(hits, open) {
  shown = { hits, open };
  at("map-toggle").hidden = !hits.some(isPlaced);
  return refresh();
}

export function listen() {
  at("map-toggle").addEventListener("click", () => {
    const open = at("map-toggle").getAttribute("aria-expanded") !== "true";
    at("map-toggle").setAttribute("aria-expanded", open);
    refresh();
  });
}
