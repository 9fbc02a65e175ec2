// Everything that comes from the server or a file is inserted as text, never as markup.
"use strict";

const find = (id) => document.getElementById(id);
const largest = Number(document.body.dataset.maxBytes);
let file = null;
let running = null; // controller of the search in progress; a new search aborts it

function element(name, kind, text) {
  const made = document.createElement(name);
  made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Small pictures are enlarged without smoothing, so that their pixels are visible.
function sharpen(event) {
  event.target.classList.toggle("small", Math.max(event.target.naturalWidth, event.target.naturalHeight) <= 96);
}

// Classes without names are numbers, which could be mistaken for another distance.
function named(label) {
  return /^\d+$/.test(label) ? `class ${label}` : label;
}

function card(hit, bits) {
  const item = element("li", "hit");
  const frame = element("div", "frame");
  const image = element("img", "");
  image.alt = "";
  image.addEventListener("load", sharpen);
  image.addEventListener("error", () => frame.replaceChildren("no picture on this machine"));
  image.src = hit.image;
  frame.append(image);
  const distance = element("p", "distance");
  distance.append(element("b", "", hit.distance), element("span", "", `of ${bits} bits differ`));
  const track = element("div", "track");
  const filled = element("div", "");
  filled.style.width = `${(100 * hit.distance) / bits}%`;
  track.append(filled);
  item.append(frame);
  if (hit.score !== null) {
    const score = element("p", "distance");
    score.append(element("b", "", Number(hit.score.toPrecision(4))), element("span", "", "score"));
    item.append(score);
  }
  item.append(distance, track);
  if (hit.labels.length) item.append(element("p", "labels", hit.labels.map(named).join(", ")));
  item.append(element("p", "id", hit.id));
  return item;
}

function show(answer) {
  const count = answer.results.length;
  const order = answer.shortlist === null ? "nearest first" : `largest score first, among the ${Math.min(answer.shortlist, answer.database).toLocaleString("en")} nearest`;
  find("status").textContent = `${count} of ${answer.database.toLocaleString("en")}, ${order}.`;
  find("about").textContent = `${file.name ? `${file.name}, ` : ""}${answer.query.width} x ${answer.query.height} pixels`;
  find("about").hidden = false;
  const counts = new Map();
  for (const label of answer.results.flatMap((hit) => hit.labels)) counts.set(label, (counts.get(label) ?? 0) + 1);
  const classes = [...counts].sort((a, b) => b[1] - a[1]).map(([label, times]) => {
    const item = element("li", "", `${named(label)} `);
    item.append(element("b", "", times));
    return item;
  });
  find("classes").replaceChildren(...classes);
  find("results").replaceChildren(...answer.results.map((hit) => card(hit, answer.bits)));
}

function fail(sentence) {
  find("error").textContent = sentence;
  find("error").hidden = false;
  find("status").textContent = "";
  find("about").hidden = true;
  find("classes").replaceChildren();
  find("results").replaceChildren();
}

async function search() {
  running?.abort();
  const mine = (running = new AbortController());
  find("error").hidden = true;
  find("status").textContent = "Searching …";
  document.body.classList.add("searching");
  try {
    if (file.size > largest) throw new Error(`an upload may have ${largest} bytes, this file has ${file.size}; choose a smaller one`);
    const form = new FormData();
    form.append("image", file);
    form.append("k", find("k").value);
    const response = await fetch("api/search", { method: "POST", body: form, signal: mine.signal }).catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Error("the server does not answer: is deephash serve still running?");
    });
    const answer = await response.json();
    if (mine !== running) return;
    if (response.ok) show(answer);
    else fail(answer.error);
  } catch (error) {
    if (error.name !== "AbortError" && mine === running) fail(error.message);
  } finally {
    if (mine === running) document.body.classList.remove("searching");
  }
}

function take(files) {
  const given = [...files];
  if (!given.length) return;
  file = given[0];
  const preview = find("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  search();
}

find("preview").addEventListener("load", (event) => {
  sharpen(event);
  event.target.hidden = find("invite").hidden = false;
  find("invite").hidden = true;
});
find("preview").addEventListener("error", (event) => {
  event.target.hidden = true;
  find("invite").hidden = false;
});
find("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // allows choosing the same file again
});
find("k").addEventListener("change", () => file && search());
document.addEventListener("paste", (event) => take(event.clipboardData.files));
let depth = 0; // number of nested elements that the pointer has entered while dragging a file
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++depth > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --depth > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});
