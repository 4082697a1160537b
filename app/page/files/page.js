/** The page: takes images by dialog, drop and paste, and sends them to its server in turn. */

import { byId, note, say, shown } from "./dom.js";
import { saveCsv, saveJson } from "./export.js";
import { add, counted, open, show, wait } from "./results.js";
import { Problem, askForKey, cancelled, detect, detectMany, model } from "./server.js";
import { cutsInWords } from "./words.js";

const PART_BYTES = 1024; // of a form around each of its files

const FINAL = ["cancelled", "unauthorized", "unreachable"]; // the next request would fare no better

/** @type {import("./results.js").Item[]} */
let items = []; // all that is in the table
/** @type {import("./results.js").Item[]} */
const waiting = []; // those of them that are not sent yet
/** @type {AbortController|undefined} */
let running;

function take(files) {
  if (!files.length) return;
  byId("results").hidden = false;
  const taken = [...files].map(add);
  items.push(...taken);
  enqueue(taken);
}

function enqueue(some) {
  waiting.push(...some);
  if (running) progress();
  else run();
}

async function run() {
  running = new AbortController();
  const { signal } = running;
  const stopped = new Promise((_, reject) => (signal.onabort = () => reject(cancelled())));
  const answered = [];
  say(`${waiting.length} ${waiting.length === 1 ? "image is" : "images are"} being scored.`);
  progress();
  try {
    const { limits } = await Promise.race([model(), stopped]);
    while (waiting.length) {
      const next = await group(limits);
      await score(next, signal);
      answered.push(...next);
    }
  } catch (problem) {
    waiting.splice(0).forEach((item) => settle(item, { problem }));
  }
  running = undefined;
  progress();
  note("");
  say(`Done. ${counted(items)}`);
  if (answered.length === 1 && answered[0].result) open(answered[0], true);
}

/** The next images that go in one request; those that cannot be sent get their answer here. */
async function group({ max_files: files, max_upload_bytes: upload, max_request_bytes: request }) {
  const taken = [];
  let bytes = PART_BYTES;
  while (waiting.length && taken.length < files) {
    const { file } = waiting[0];
    if (taken.length && bytes + file.size + PART_BYTES > request) break;
    const item = waiting.shift();
    if (file.size > upload) {
      const text = `One image may have ${upload} bytes at most.`;
      settle(item, { problem: new Problem("payload_too_large", text, 413) });
    } else if (!(await readable(file))) {
      const text = "This browser cannot read it: it is a folder, or it has changed.";
      settle(item, { problem: new Problem("unreadable", text, 400) });
    } else {
      taken.push(item);
      bytes += file.size + PART_BYTES;
    }
  }
  return taken;
}

const readable = (file) => file.slice(0, 1).arrayBuffer().then(() => true, () => false);

/** One request. Each of its images has an answer then, or a problem; throws what is FINAL. */
async function score(group, signal) {
  let problem = new Problem("broken_off", "The answer broke off before this image's turn.");
  try {
    if (group.length === 1) settle(group[0], { result: await detect(group[0].file, signal) });
    else if (group.length) {
      const files = group.map((item) => item.file);
      for await (const { index, result, error } of detectMany(files, signal))
        settle(group[index], {
          result,
          problem: error && new Problem(error.code, error.detail, error.status),
        });
    }
  } catch (caught) {
    problem = caught;
  }
  if (signal.aborted) problem = cancelled();
  group.filter((item) => !done(item)).forEach((item) => settle(item, { problem }));
  if (FINAL.includes(problem.code)) throw problem;
}

const done = ({ result, problem }) => Boolean(result || problem);

function settle(item, { result, problem }) {
  Object.assign(item, { result, problem });
  show(item, () => {
    item.problem = undefined;
    wait(item);
    enqueue([item]);
    byId("results-title").focus(); // the button is gone
  });
  progress();
}

function progress() {
  const count = items.filter(done).length;
  byId("summary").textContent = counted(items);
  byId("progress").hidden = !running;
  byId("clear").disabled = Boolean(running);
  byId("bar").max = items.length;
  byId("bar").value = count;
  byId("count").textContent = `${count} of ${items.length} done`;
  const tenth = Math.ceil(items.length / 10); // more would be too much to listen to
  if (running && count && count % tenth === 0 && items.length > 9) say(byId("count").textContent);
}

function clear() {
  items.forEach((item) => URL.revokeObjectURL(item.url));
  items = [];
  byId("rows").replaceChildren();
  byId("results").hidden = true;
  say("Cleared.");
  byId("choose").focus();
}

async function aboutModel() {
  const about = byId("model");
  try {
    const { name, version, thresholds, limits } = await model();
    about.textContent = `Model ${name} ${version}: ${cutsInWords(thresholds)}.`;
    const size = `${shown(limits.max_upload_bytes / 2 ** 20)} MiB`;
    byId("limits").textContent = `${limits.formats.join(", ")}; up to ${size} each.`;
  } catch (problem) {
    about.textContent = problem.message;
  }
}

byId("choose").addEventListener("change", ({ target }) => {
  take(target.files);
  target.value = ""; // so that the same file may be chosen again
});
addEventListener("dragover", (event) => {
  event.preventDefault(); // or the browser would go to the file
  document.body.classList.add("dragging");
});
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dragging");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files);
});
addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
byId("cancel").addEventListener("click", () => {
  running?.abort();
  byId("results-title").focus();
});
byId("clear").addEventListener("click", clear);
byId("csv").addEventListener("click", () => saveCsv(items));
byId("json").addEventListener("click", () => saveJson(items));
byId("key-button").addEventListener("click", async () => {
  if (await askForKey()) aboutModel();
});
aboutModel();
