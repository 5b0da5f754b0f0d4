// The cards of images: of a search with rank and score, of the start page without.

import { create } from "./elements.js";

function gone() {
  return create("span", "gone", "This image can’t be read.");
}

function frame(hit) {
  const holder = create("span", "frame");
  if (!hit.thumbnail) {
    holder.append(gone());
    return holder;
  }
  const image = document.createElement("img");
  image.alt = ""; // its name stands below
  image.addEventListener("error", () => image.replaceWith(gone()));
  image.src = hit.thumbnail;
  holder.append(image);
  return holder;
}

function tools(hit, nameId, actions) {
  const holder = create("div", "tools");
  const label = create("label", "pick");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = actions.isSelected(hit);
  box.setAttribute("aria-describedby", nameId);
  box.addEventListener("change", () => actions.select(hit, box.checked));
  label.append(box, " Select");
  holder.append(label);
  if (hit.row !== null) {
    const button = create("button", "similar", "Similar");
    button.type = "button";
    button.setAttribute("aria-label", "Similar images");
    button.setAttribute("aria-describedby", nameId);
    button.addEventListener("click", () => actions.similar(hit));
    holder.append(button);
  }
  return holder;
}

/**
 * The card of an image.
 *
 * actions: isSelected(hit), select(hit, whether), similar(hit), open(place).
 */
export function card(hit, place, actions) {
  const item = create("li", "card");
  const link = create(hit.image ? "a" : "div", "open");
  const name = create("span", "name", hit.name);
  name.id = `name-${place}`;
  link.append(frame(hit));
  if (hit.rank !== undefined) {
    const line = create("span", "line");
    line.append(create("span", "rank", String(hit.rank)), " ", create("span", "score", hit.score.toFixed(4)), " ");
    link.append(line);
  }
  link.append(name);
  if (hit.image) {
    link.href = hit.image;
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      actions.open(place);
    });
  }
  item.append(link, tools(hit, name.id, actions));
  return item;
}
