// What all parts of the page share: elements, messages, and questions to the server.

export const at = (id) => document.getElementById(id);

export function create(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

/** Show a text in its place; an empty one hides the place. */
export function say(id, text) {
  at(id).textContent = text;
  at(id).hidden = !text;
}

/** The response to a request; an Error carries the server's message. */
export async function responseTo(url, settings) {
  const response = await fetch(url, settings);
  if (response.ok) return response;
  const text = await response.text();
  let message = text || `${response.status} ${response.statusText}`;
  try {
    message = JSON.parse(text).detail;
  } catch {
    // not the page's server, but a proxy before it
  }
  throw new Error(message);
}

export async function answerTo(url, settings) {
  return (await responseTo(url, settings)).json();
}

/** The version of the index that an image's row belongs to. */
export const versionOf = (hit) => new URLSearchParams(hit.image.split("?")[1]).get("index");

export const count = (number, one, more = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : more}`;
