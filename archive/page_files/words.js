// Suggestions while typing, for models that know a closed list of words: ends of the word that is begun.

import { answerTo, at, create } from "./elements.js";

const MOST = 8;
let words = null; // in alphabetical order

async function load() {
  try {
    words = (await answerTo("api/words")).words;
  } catch {
    words = []; // a sentence can be written without
  }
}

function suggest() {
  const text = at("query").value;
  const begun = /[^\s]+$/.exec(text)?.[0].toLowerCase();
  const fitting = begun ? words.filter((word) => word.startsWith(begun) && word !== begun).slice(0, MOST) : [];
  const before = begun ? text.slice(0, -begun.length) : "";
  at("completions").replaceChildren(
    ...fitting.map((word) => {
      const option = create("option", "");
      option.value = before + word;
      return option;
    }),
  );
}

export function listen() {
  at("query").addEventListener("input", async () => {
    if (words === null) await load();
    suggest();
  });
}
